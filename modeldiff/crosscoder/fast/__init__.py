"""What makes training and encoding fast, behind few doors; the dense formula is the reference of the tests.

step.py       a training batch through the crosscoder and back (`SparseStep`)
scores.py     BatchTopK without a matrix of scores
entries.py    the active entries of a code, in the orders that sums over them need
bags.py       these sums and products; triton_bags.py: on a GPU
products.py   encoder and decoder over the partition, dense, with autograd
inference.py  the active entries at inference; coarse.py: found by products in bfloat16
"""
