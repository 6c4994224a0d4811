"""Corrected photos in folders, exports and archives of masks, and a head learnt from them (`lasagna.instant`)."""
