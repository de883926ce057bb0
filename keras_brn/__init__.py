"""Batch Renormalization (Ioffe 2017) for Keras 3."""

import keras_brn.extras  # noqa: F401  isort: split  First: names a missing backend.
from keras_brn.averaging import AveragedModel as AveragedModel
from keras_brn.convert import renormalize as renormalize
from keras_brn.convert import to_batch_normalization as to_batch_normalization
from keras_brn.distribute.tensorflow import multi_worker as multi_worker
from keras_brn.distribute.torch import average_statistics as average_statistics
from keras_brn.layer import BatchRenormalization as BatchRenormalization
from keras_brn.monitor import RenormMonitor as RenormMonitor
from keras_brn.monitor import measure_correction as measure_correction
from keras_brn.ramp import LinearRamp as LinearRamp
from keras_brn.ramp import linear_ramp as linear_ramp
from keras_brn.recurrent import RenormLSTMCell as RenormLSTMCell
from keras_brn.recurrent import RenormRNN as RenormRNN
from keras_brn.schedule import RenormSchedule as RenormSchedule
from keras_brn.version import __version__ as __version__
