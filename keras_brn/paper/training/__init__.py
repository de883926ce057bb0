"""Training of an experiment: interrupted at any time, it goes on to the same result."""

from keras_brn.paper.training.files import completed_result as completed_result
from keras_brn.paper.training.files import store_result as store_result
from keras_brn.paper.training.trainer import train as train
