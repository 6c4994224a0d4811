"""The instant head: a second after a correction, the next photo is better.

Linear discriminants on the frozen encoder's features, from exact statistics of every corrected pixel, stacked on the
model that serves, and let in by a gate that leaves each corrected photo out in turn. No training: a fit is
milliseconds, and a correction can be replaced or taken away as if it had never been.

In Python (`lasagna.assistant.Lasagna`):

    model = Lasagna.from_pretrained("nano")              # or head="head.safetensors"
    decision = model.learn(image, masks, id="photo 7")   # masks: {label: bool (H, W) or None}; decision.reason in words
    model.forget("photo 7")
    model.segment(image, labels)                         # of "nano-ec805b63+h8", as model.version says

For a service, with its corrections on disk (all files appear whole; kill -9 at any moment loses nothing that `put` has
returned from):

    store = HeadStore(folder, limit=300)                 # one per project; `store.lock()` around put, remove and fit
    correction = model.observe(image_or_features, masks, id="12", classes=plan, undecided=void)
    store.put(correction)                                # adds or replaces; one file of at most 2 MB
    store.remove("12")
    head = store.refresh()                               # fits if corrections changed; numbered; None: no correction
    store.head(11), store.current(), store.rollback(11)
    model.use_head(head)                                 # or Head.load(path); None: the model as it was. Thread-safe
    head.number, head.suffix, head.digest, head.serves, head.decision.reason

`model.encoder_fingerprint` and `model.base_version` say which encoder and model corrections must be of:
`store.is_of(fingerprint, version)` tells whether they are; after a promotion `store.clear()` and observe the photos
again. Several projects may share one model: pass `head=` to each `segment_batch` call instead of `use_head`.

Modules, from the ground up: `features`, `statistics`, `discriminant`, `correction` (one photo), `presence`, `stacking`,
`tally`, `leave_out`, `gate`, `head` (weights and their file), `fit` (corrections to a head), `painting`, `store`.
"""
