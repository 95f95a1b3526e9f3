"""Scaling laws: predict, fit, allocate; one file each.

`law` holds the contract, `library` the laws, `coefficients` their published values, `fitting` the many-start robust
fit, `allocation` what a budget buys under a law.
"""
