"""The sparse products that training is made of, each a plain function over a fast implementation.

bags.py     weighted sums of rows, products of pairs of rows
kept.py     which entries of a code are kept, in the orders that these need
code.py     encoder and decoder of such a code for autograd
"""
