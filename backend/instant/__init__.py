"""The instant head of a project: what was corrected, what is learnt from it, and which predictions follow.

`heads` is where a project's heads lie and which one it uses now (files, no torch); `changes` is what has been corrected
and not yet learnt from (Redis); `reading` turns an annotation into masks; `learning` is the job that puts these
together in the worker; `renewal` predicts anew what annotators open next.

A correction's way: Label Studio's webhook notes the task and queues one short job for the project. The job reads the
annotation, adds it to the project's exact statistics (or takes it away), fits and judges the head, and writes it beside
the version that serves. From then on predictions say "nano-ec805b63+h12".
"""
