"""The sub-commands of `lasagna bench`, one module each; what they share is in `lasagna.bench`."""
