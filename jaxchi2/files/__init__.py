"""Frames out of files and results into them, as far as both can be larger than memory.

`sources` opens files of every format as one sequence of frames, `rows` and `tables` write what is measured,
`stackfile` and `outputs` write frames. Nothing here overwrites what this package did not write.
"""
