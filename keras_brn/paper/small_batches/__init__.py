"""Training with 2 to 32 images a step, the gradient included, by several normalizations: Figure 6.

    KERAS_BACKEND=jax python -m keras_brn.paper.small_batches [--tiny-imagenet PATH] [--results DIR]

All runs see the same images in the same order. What differs is how many of them make a step.
"""
