"""The sparse products that training is made of, each a plain function over a fast implementation.

bags.py     the two functions, for the CPU and any other device
"""
