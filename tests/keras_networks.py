"""Networks of the baseline rebuilt in Keras, to compare ours at settings of any kind.

They follow the specification of the baseline, not our code. Import it only where TensorFlow is.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers


def build_head(features: Any, classes: int, name: str | None) -> Any:
    """A sigmoid for one class, a softmax for several."""
    activation = "sigmoid" if classes == 1 else "softmax"
    return layers.Conv2D(classes, 1, activation=activation, name=name)(features)


# TransUNet


@keras.saving.register_keras_serializable("ovseg_tests")
class patch_embedding(layers.Layer):
    def __init__(self, tokens: int, channels: int, **arguments: Any):
        super().__init__(**arguments)
        self.tokens = tokens
        self.proj = layers.Dense(channels)
        self.pos_embed = layers.Embedding(tokens, channels)

    def build(self, shape: Any) -> None:
        self.proj.build(shape)
        self.pos_embed.build(None)

    def call(self, tokens: Any) -> Any:
        return self.proj(tokens) + self.pos_embed(keras.ops.arange(self.tokens))


@keras.saving.register_keras_serializable("ovseg_tests")
class GELU(layers.Layer):
    def call(self, x: Any) -> Any:
        inner = keras.ops.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
        return 0.5 * x * (1.0 + inner)


@keras.saving.register_keras_serializable("ovseg_tests")
class Snake(layers.Layer):
    def build(self, shape: Any) -> None:
        start = keras.initializers.Constant(0.5)
        self.beta_factor = self.add_weight((), start, trainable=False, name="beta_factor")

    def call(self, x: Any) -> Any:
        return x + keras.ops.square(keras.ops.sin(self.beta_factor * x)) / self.beta_factor


MLP_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "GELU": GELU,
    "ReLU": layers.ReLU,
    "ELU": layers.ELU,
    "LeakyReLU": lambda name: layers.LeakyReLU(negative_slope=0.3, name=name),
    "Softmax": layers.Softmax,
    "PReLU": layers.PReLU,
    "Snake": Snake,
}


def names_of_maps(backbone: str) -> list[str]:
    """Layers of an application that the specification names."""
    if backbone.startswith("VGG"):
        last = {"VGG16": 3, "VGG19": 4}[backbone]
        return ["block1_conv2", "block2_conv2", *(f"block{n}_conv{last}" for n in (3, 4, 5))]
    if backbone.startswith("DenseNet"):
        return ["conv1_relu", "pool2_conv", "pool3_conv", "pool4_conv", "relu"]
    if backbone.startswith("EfficientNet"):
        blocks = [f"block{n}a_expand_activation" for n in (2, 3, 4, 6)]
        return [*blocks, "top_activation"]
    conv3, conv4 = {"50": (4, 6), "101": (4, 23), "152": (8, 36)}[backbone[6:].removesuffix("V2")]
    blocks = ["conv2_block3", f"conv3_block{conv3}", f"conv4_block{conv4}"]
    if backbone.endswith("V2"):
        return ["conv1_conv", *(f"{block}_1_relu" for block in blocks), "post_relu"]
    return ["conv1_relu", *(f"{block}_out" for block in [*blocks, "conv5_block3"])]


def take_maps(inputs: Any, backbone: str, levels: int) -> list[Any]:
    """The maps of an application, as a model inside the model."""
    build = getattr(keras.applications, backbone)
    network = build(include_top=False, weights=None, input_tensor=inputs)
    count = levels if backbone.startswith("VGG") else levels - 1
    outputs = [network.get_layer(name).output for name in names_of_maps(backbone)[:count]]
    return list(keras.Model(inputs, outputs, name=f"{backbone}_backbone")(inputs))


def build_transunet(
    image_size: int,
    filter_num: Sequence[int],
    embed_dim: int,
    num_mlp: int,
    num_heads: int,
    num_transformer: int,
    stack_num_down: int = 2,
    stack_num_up: int = 2,
    mlp_activation: str = "GELU",
    batch_norm: bool = False,
    pool: bool = True,
    backbone: str | None = None,
    classes: int = 1,
    in_channels: int = 3,
) -> keras.Model:
    def normalise(features: Any, name: str) -> Any:
        if batch_norm:
            features = layers.BatchNormalization(name=name)(features)
        return layers.ReLU()(features)

    def convolve(features: Any, filters: int, name: str) -> Any:
        conv = layers.Conv2D(filters, 3, padding="same", use_bias=not batch_norm, name=name)
        return normalise(conv(features), f"{name}_bn")

    def downsample(features: Any, filters: int, name: str) -> Any:
        if pool:
            return layers.MaxPooling2D(2)(features)
        bias = not batch_norm
        conv = layers.Conv2D(filters, 2, strides=2, use_bias=bias, name=f"{name}_stride_conv")
        return normalise(conv(features), f"{name}_bn")

    def upsample(features: Any, filters: int, name: str) -> Any:
        if pool:
            return layers.UpSampling2D(2, interpolation="bilinear")(features)
        conv = layers.Conv2DTranspose(
            filters, 3, strides=2, padding="same", name=f"{name}_trans_conv"
        )
        return normalise(conv(features), f"{name}_bn")

    inputs = layers.Input((image_size, image_size, in_channels))
    levels = len(filter_num)
    if backbone is None:
        features = inputs
        for number in range(stack_num_down):
            features = convolve(features, filter_num[0], f"transunet_down0_{number}")
        skips = [features]
        reached = 1
    else:
        skips = take_maps(inputs, backbone, levels)
        reached = len(skips) if backbone.startswith("VGG") else len(skips) + 1
    for level in range(reached, levels):
        name = f"transunet_down{level if backbone is None else level + 1}"
        features = downsample(skips[-1], filter_num[level], f"{name}_encode")
        for number in range(stack_num_down):
            features = convolve(features, filter_num[level], f"{name}_conv_{number}")
        skips.append(features)
    features = skips.pop()

    deepest = filter_num[-1]
    side = image_size // 2 ** (len(filter_num) - 1)
    conv = layers.Conv2D(deepest, 1, use_bias=False, name="transunet_conv_trans_before")
    tokens = layers.Reshape((side * side, deepest))(conv(features))
    tokens = patch_embedding(side * side, embed_dim, name="patch_embedding")(tokens)
    for block in range(num_transformer):
        name = f"transunet_ViT_{block}"
        normed = layers.LayerNormalization(name=f"{name}_layer_norm_1")(tokens)
        attention = layers.MultiHeadAttention(num_heads, embed_dim, name=f"{name}_atten")
        tokens = layers.Add()([attention(normed, normed), tokens])
        hidden = layers.LayerNormalization(name=f"{name}_layer_norm_2")(tokens)
        for number, units in enumerate((num_mlp, embed_dim)):
            hidden = layers.Dense(units, name=f"{name}_mlp_dense_{number}")(hidden)
            activation = MLP_ACTIVATIONS[mlp_activation]
            hidden = activation(name=f"{name}_mlp_activation_{number}")(hidden)
        tokens = layers.Add()([hidden, tokens])
    features = layers.Reshape((side, side, embed_dim))(tokens)
    conv = layers.Conv2D(deepest, 1, use_bias=False, name="transunet_conv_trans_after")
    features = conv(features)

    for step, filters in enumerate(reversed(filter_num[:-1])):
        name = f"transunet_up{step}"
        features = upsample(features, filters, f"{name}_decode")
        features = convolve(features, filters, f"{name}_conv_before_concat_0")
        if skips:
            features = layers.Concatenate()([features, skips.pop()])
        for number in range(stack_num_up):
            features = convolve(features, filters, f"{name}_conv_after_concat_{number}")
    return keras.Model(inputs, build_head(features, classes, "transunet_output"))


# U2-Net


def build_u2net(
    image_size: int, base_filters: int, num_layers: int, classes: int = 1, in_channels: int = 3
) -> keras.Model:
    def convolve(features: Any, filters: int, name: str, dilation: int = 1) -> Any:
        conv = layers.Conv2D(
            filters, 3, padding="same", dilation_rate=dilation, activation="relu", name=name
        )
        return conv(features)

    def enlarge(features: Any, factor: int = 2) -> Any:
        return layers.UpSampling2D(factor, interpolation="bilinear")(features)

    def join(*maps: Any) -> Any:
        return layers.Concatenate()(list(maps))

    def rsu(features: Any, narrow: int, filters: int, depth: int, name: str) -> Any:
        first = convolve(features, filters, f"{name}_in_0")
        maps = [convolve(first, narrow, f"{name}_down_0_0")]
        for number in range(1, depth + 1):
            pooled = layers.MaxPooling2D(2)(maps[-1])
            maps.append(convolve(pooled, narrow, f"{name}_down_{number}_0"))
        features = convolve(maps[-1], narrow, f"{name}_up_0_0", dilation=2)
        for number in range(1, depth + 1):
            joined = join(features, maps[depth + 1 - number])
            features = enlarge(convolve(joined, narrow, f"{name}_up_{number}_0"))
        last = convolve(join(features, maps[0]), filters, f"{name}_out_0")
        return layers.Add()([last, first])

    def rsu4f(features: Any, narrow: int, filters: int, name: str) -> Any:
        first = convolve(features, filters, f"{name}_in_0")
        d1 = convolve(first, narrow, f"{name}_down_0_0")
        d2 = convolve(d1, narrow, f"{name}_down_1_0", 2)
        d4 = convolve(d2, narrow, f"{name}_down_2_0", 4)
        d8 = convolve(d4, narrow, f"{name}_down_3_0", 8)
        features = convolve(join(d8, d4), narrow, f"{name}_up_0_0", 4)
        features = convolve(join(features, d2), narrow, f"{name}_up_1_0", 2)
        features = convolve(join(features, d1), filters, f"{name}_out_0")
        return layers.Add()([features, first])

    def filters_of(level: int) -> int:
        return base_filters * 2**level

    inputs = layers.Input((image_size, image_size, in_channels))
    narrow = base_filters // 4
    maps = [rsu(inputs, narrow, base_filters, num_layers + 1, "u2net_in")]
    for i in range(num_layers - 1):
        filters = filters_of(i + 1)
        pooled = layers.MaxPooling2D(2)(maps[-1])
        maps.append(rsu(pooled, filters // 4, filters, num_layers - i, f"u2net_down_{i}"))
    deepest = filters_of(num_layers - 1)
    p = rsu4f(layers.MaxPooling2D(2)(maps[-1]), deepest // 2, deepest, "u2net_down_4f_0")
    q = rsu4f(layers.MaxPooling2D(2)(p), deepest // 2, deepest, "u2net_down_4f_1")
    u = rsu4f(join(enlarge(q), p), deepest // 2, deepest, "u2net_up_4f_0")
    sides = [u, q]
    for i in range(num_layers):
        level = num_layers - 1 - i
        filters = filters_of(level)
        joined = join(enlarge(u), maps[level])
        u = rsu(joined, filters // 4, filters, i + 2, f"u2net_up_{i}")
        sides.insert(0, u)
    probs = []
    for i, side in enumerate(sides):
        name = f"u2net_output_conv_{i}" if i else "u2net_output_sup0"
        logits = layers.Conv2D(classes, 3, padding="same", name=name)(side)
        if i:
            logits = enlarge(logits, 2**i)
        probs.append(layers.Activation("sigmoid")(logits))
    fuse = layers.Conv2D(classes, 1, activation="sigmoid", name="u2net_output_final")
    return keras.Model(inputs, fuse(join(*probs)))


# Sharp UNet


def build_sharp_unet(
    image_size: int,
    filters: Sequence[int],
    max_filter: int,
    base_ksize: tuple[int, int],
    dilation: tuple[int, int],
    classes: int = 1,
    in_channels: int = 3,
) -> keras.Model:
    def convolve_twice(features: Any, count: int) -> Any:
        for _ in range(2):
            conv = layers.Conv2D(
                count, base_ksize, padding="same", dilation_rate=dilation, activation="relu"
            )
            features = conv(features)
        return features

    def sharpen(features: Any) -> Any:
        kernel = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32)
        kernel = np.tile(kernel[:, :, None, None], (1, 1, features.shape[-1], 1))
        conv = layers.DepthwiseConv2D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=keras.initializers.Constant(kernel.tolist()),
            trainable=False,
        )
        return conv(features)

    inputs = layers.Input((image_size, image_size, in_channels))
    features = inputs
    skips = []
    for count in filters:
        features = convolve_twice(features, count)
        skips.append(features)
        features = layers.MaxPooling2D(2)(features)
    features = convolve_twice(features, max_filter)
    convolved = None
    for count in reversed(filters):
        enlarged = layers.Conv2DTranspose(count, 2, strides=2, padding="same")(features)
        features = layers.Concatenate()([enlarged, sharpen(skips.pop())])
        convolved = convolve_twice(features, count)  # lost, but for those of the last level
    return keras.Model(inputs, build_head(convolved, classes, None))


BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "transunet": build_transunet,
    "u2net": build_u2net,
    "sharp_unet": build_sharp_unet,
}


def build_with_random_weights(arch: str, seed: int = 0, **settings: Any) -> keras.Model:
    """A network whose weights, those that start at 0 or 1 included, are all drawn."""
    keras.utils.set_random_seed(seed)
    model = BUILDERS[arch](**settings)
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        is_fixed = "depthwise_kernel" in weight.path or weight.shape == ()
        if not is_fixed and (weight.ndim == 1 or "alpha" in weight.path):
            noise = generator.uniform(-0.2, 0.2, weight.shape)
            weight.assign(weight + noise)
    for part in model.layers:
        for layer in getattr(part, "layers", [part]):  # of a model inside the model
            if isinstance(layer, layers.Normalization):
                layer.finalize_state()  # it computes with copies of its weights
    return model
