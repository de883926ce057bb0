"""A model with another normalization and the same weights, in and out."""

from keras_brn.convert.conversion import renormalize as renormalize
from keras_brn.convert.conversion import to_batch_normalization as to_batch_normalization
