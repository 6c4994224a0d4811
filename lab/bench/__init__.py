"""The sub-commands of `lasagna bench`, one module each; what they share is in `lab.bench.command`."""
