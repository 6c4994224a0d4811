"""Other tools' own ways to a model: CVAT's auto-annotation, supervision, Hugging Face's datasets (`docs/doors.md`).

Thin: each module needs the package of its tool, an extra of ours, and turns a `Segmentation` into what that tool takes.
"""
