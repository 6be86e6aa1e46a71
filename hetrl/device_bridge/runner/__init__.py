"""What runs on the device that is measured: the standard library, numpy and an engine, nothing else of hetrl.

A board gets this folder as one archive, so no module here may import anything of hetrl outside of it.
"""
