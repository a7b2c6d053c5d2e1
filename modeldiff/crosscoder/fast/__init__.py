"""What makes training and encoding fast; the dense formula is the reference of the tests.

topk.py       BatchTopK without a matrix of scores
sparse.py     the active entries of a code, sums over them (triton_bags.py: on a GPU), a training batch there and back
product.py    the encoder's product
inference.py  the active entries at inference
"""
