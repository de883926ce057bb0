"""Batch Renormalization (Ioffe 2017) for Keras 3."""

from keras_brn.layer import BatchRenormalization as BatchRenormalization
from keras_brn.schedule import RenormSchedule as RenormSchedule
from keras_brn.schedule import linear_ramp as linear_ramp

__version__ = "0.1.0"
