"""From a pair of images to the minimum of χ², its errors and a verdict.

The way of the data: `choices`, `constraints` and `pair` check what is given and turn masks into NaN. `layout`
makes weights of bad pixels and puts the pair on the periodic grid of its boundary; where pixels of the
reference are unknown, `overlap` ranks all whole shifts, `continuation` fills the unknown, and `wiener`
filters a reference that has noise. `builders` makes the `terms`: χ² as exact Fourier series in the shift, a
`chi2series`, and a `searchgrid` of what every whole shift is worth. `minimum` searches the grid and goes down
to the minimum on the series, `errors` follows χ² up from there, and `verdict` and `chance` judge the match.
Everything after the checks is traced: values never raise.
"""
