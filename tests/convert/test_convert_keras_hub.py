"""Models of keras_hub, where it is installed: their blocks make layers without configurations."""

import keras
import numpy as np
import pytest
from convert_models import BatchNormalization, count
from keras import ops
from test_applications import images, randomize

from keras_brn import BatchRenormalization, renormalize, to_batch_normalization

hub = pytest.importorskip("keras_hub")


def resnet():
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(96, 96, 3),
    )


def retina_net():
    backbone = hub.models.RetinaNetBackbone(resnet(), min_level=3, max_level=5, use_p5=False)
    anchors = hub.layers.AnchorGenerator(
        "xyxy", 3, 5, num_scales=1, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=4.0
    )
    return hub.models.RetinaNetObjectDetector(backbone, num_classes=4, anchor_generator=anchors)


def mobile_net():
    backbone = hub.models.MobileNetBackbone(
        stackwise_expansion=[[40], [64, 144]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[16], [24, 24]],
        stackwise_kernel_size=[[3], [5, 5]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[None], [0.25, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [2, 2]],
        output_num_filters=64,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=64,
    )
    return hub.models.MobileNetImageClassifier(backbone, num_classes=4)


def hgnet(filters, **options):
    return hub.models.HGNetV2Backbone(
        depths=[stage[3] for stage in filters],
        embedding_size=16,
        hidden_sizes=[stage[2] for stage in filters],
        stem_channels=[3, 16, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=filters,
        apply_downsample=[index > 0 for index in range(len(filters))],
        use_lightweight_conv_block=[index > 1 for index in range(len(filters))],
        **options,
    )


def d_fine():
    filters = [
        [16, 16, 64, 1, 3, 3],
        [64, 32, 256, 1, 3, 3],
        [256, 64, 512, 2, 3, 5],
        [512, 128, 1024, 1, 3, 5],
    ]
    return hub.models.DFineBackbone(
        backbone=hgnet(filters, image_shape=(None, None, 3), out_features=["stage3", "stage4"]),
        decoder_in_channels=[128, 128],
        encoder_hidden_dim=128,
        num_labels=4,
        num_denoising=0,
        learn_initial_query=False,
        num_queries=30,
        anchor_image_size=(96, 96),
        feat_strides=[16, 32],
        num_feature_levels=2,
        hidden_dim=128,
        encoder_in_channels=[512, 1024],
        encode_proj_layers=[1],
        num_attention_heads=8,
        encoder_ffn_dim=512,
        num_encoder_layers=1,
        hidden_expansion=0.34,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=3,
        decoder_attention_heads=8,
        decoder_ffn_dim=512,
        decoder_n_points=[6, 6],
        lqe_hidden_dim=64,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(None, None, 3),
    )


@pytest.mark.parametrize(
    "make",
    [
        retina_net,
        mobile_net,
        lambda: hgnet([[16, 16, 64, 1, 3, 3], [64, 32, 128, 2, 3, 3]], image_shape=(96, 96, 3)),
        pytest.param(d_fine, marks=pytest.mark.long),
    ],
)
@pytest.mark.filterwarnings("ignore:The copy of", "ignore:The optimizer")
def test_there_and_back(make, rng):
    model, x = make(), images("", rng)[:2]
    randomize(model, x, rng)
    expected = keras.tree.flatten(model(x))
    renormalized = renormalize(model)
    assert count(renormalized, BatchRenormalization) == count(model, BatchNormalization)
    for copy in (renormalized, to_batch_normalization(renormalized)):
        for y, wanted in zip(keras.tree.flatten(copy(x)), expected, strict=True):
            y, wanted = map(ops.convert_to_numpy, (y, wanted))
            assert np.abs(y - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_preprocessor_that_is_lost_is_told():
    model = hub.models.ResNetImageClassifier(
        resnet(),
        num_classes=4,
        preprocessor=hub.models.ResNetImageClassifierPreprocessor(
            image_converter=hub.layers.ResNetImageConverter(image_size=(96, 96))
        ),
    )
    with pytest.warns(UserWarning, match="ResNetImageClassifier adds or changes: .*preprocessor"):
        renormalize(model)
