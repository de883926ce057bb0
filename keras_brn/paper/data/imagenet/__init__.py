"""ImageNet (ILSVRC 2012) through TensorFlow Datasets, in the crops that Inception-v3 trains on."""

from keras_brn.paper.data.imagenet.crops import central_crop as central_crop
from keras_brn.paper.data.imagenet.crops import training_crop as training_crop
from keras_brn.paper.data.imagenet.loading import BUILDER as BUILDER
from keras_brn.paper.data.imagenet.loading import ImageNet as ImageNet
from keras_brn.paper.data.imagenet.loading import load_imagenet as load_imagenet
from keras_brn.paper.data.imagenet.preparing import OFFICIAL_IMAGES as OFFICIAL_IMAGES
from keras_brn.paper.data.imagenet.preparing import prepare_imagenet as prepare_imagenet
