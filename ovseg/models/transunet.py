"""The baseline's TransUNet: a UNet with a vision transformer on its deepest map."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.models.backbones import EFFICIENTNETS, Backbone, first_level
from ovseg.models.checks import check_at_least, check_filters, read_image_size
from ovseg.models.layers import (
    KERAS_EPSILON,
    InputScale,
    KerasNamed,
    PortedModule,
    batch_norm,
    crop_to_image,
    init_glorot,
    keras_layers_of,
    pad_to_size,
)


class TokenPReLU(KerasNamed):
    """Keras' PReLU of tokens (N, tokens, channels): a slope below 0 for each token and channel."""

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(tokens, channels))

    def forward(self, features: Tensor) -> Tensor:
        return torch.where(features > 0, features, self.alpha * features)


class Snake(KerasNamed):
    """x + sin^2(b x) / b; b is 0.5 and not trained, but a Keras file holds it.

    Source: L. Ziyin et al., Neural networks fail to learn periodic functions, NeurIPS 2020.
    """

    beta_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta_factor", torch.tensor(0.5))

    def forward(self, features: Tensor) -> Tensor:
        return features + (self.beta_factor * features).sin().square() / self.beta_factor


# Activations of the dense layers by the baseline's names, made from the numbers of tokens and of
# channels.
MLP_ACTIVATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "GELU": lambda tokens, channels: nn.GELU(approximate="tanh"),
    "ReLU": lambda tokens, channels: nn.ReLU(),
    "ELU": lambda tokens, channels: nn.ELU(),
    "LeakyReLU": lambda tokens, channels: nn.LeakyReLU(0.3),  # Keras' slope of the layer
    "Softmax": lambda tokens, channels: nn.Softmax(-1),
    "PReLU": TokenPReLU,
    "Snake": lambda tokens, channels: Snake(),
}


class ConvStack(PortedModule):
    """3 x 3 convolutions, each with batch normalisation, if asked, and ReLU.

    Args:
        name: of its layers in Keras.
        in_channels: channels of the input.
        channels: channels of the output.
        count: number of convolutions.
        norm: whether they are normalised, and then without bias.
    """

    def __init__(self, name: str, in_channels: int, channels: int, count: int, norm: bool):
        super().__init__()
        self.name = name
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for _ in range(count):
            self.convs.append(nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm))
            self.norms.append(batch_norm(channels) if norm else nn.Identity())
            in_channels = channels

    def forward(self, features: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.relu(norm(conv(features)))
        return features

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            yield self.name, conv
            if isinstance(norm, nn.BatchNorm2d):
                yield f"{self.name}_{number}_bn", norm


class Downsampling(PortedModule):
    """Instead of pooling: a convolution of stride 2, batch normalisation, if asked, and ReLU."""

    def __init__(self, name: str, in_channels: int, channels: int, norm: bool):
        super().__init__()
        self.name = name
        self.conv = nn.Conv2d(in_channels, channels, 2, stride=2, bias=not norm)
        self.norm = batch_norm(channels) if norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(features)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield f"{self.name}_stride_conv", self.conv
        if isinstance(self.norm, nn.BatchNorm2d):
            yield f"{self.name}_bn", self.norm


class Upsampling(PortedModule):
    """A 3 x 3 transposed convolution of stride 2, which always has a bias, and ReLU."""

    def __init__(self, name: str, in_channels: int, channels: int, norm: bool):
        super().__init__()
        self.name = name
        self.conv = nn.ConvTranspose2d(in_channels, channels, 3, stride=2)
        self.norm = batch_norm(channels) if norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        # Of the 2 n + 1 rows and columns Keras' "same" leaves out the last.
        enlarged = self.conv(features)[..., :-1, :-1]
        return F.relu(self.norm(enlarged))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield f"{self.name}_trans_conv", self.conv
        if isinstance(self.norm, nn.BatchNorm2d):
            yield f"{self.name}_bn", self.norm


class TokenEmbedding(KerasNamed):
    """Each pixel's channels through a dense layer, plus a learned vector for its position."""

    def __init__(self, tokens: int, in_channels: int, channels: int):
        super().__init__()
        self.dense = nn.Linear(in_channels, channels)
        self.embedding = nn.Embedding(tokens, channels)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)  # Keras' default

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, rows, columns) -> (N, rows * columns, channels), row by row."""
        return self.dense(features.flatten(2).transpose(1, 2)) + self.embedding.weight


class Heads(KerasNamed):
    """A dense layer from every token to `heads` vectors, in Keras' layout of weights."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, heads, channels))
        self.bias = nn.Parameter(torch.zeros(heads, channels))
        # Keras counts the middle axis as inputs.
        limit = (6 / (channels * (heads + channels))) ** 0.5
        nn.init.uniform_(self.kernel, -limit, limit)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, tokens, channels) -> (N, heads, tokens, channels)."""
        vectors = tokens @ self.kernel.flatten(1) + self.bias.flatten()
        return vectors.unflatten(-1, self.bias.shape).transpose(1, 2)


class HeadsOutput(KerasNamed):
    """A dense layer from the vectors of all heads to one token."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(heads, channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        limit = (3 / (heads * channels)) ** 0.5
        nn.init.uniform_(self.kernel, -limit, limit)

    def forward(self, vectors: Tensor) -> Tensor:
        """(N, heads, tokens, channels) -> (N, tokens, channels)."""
        return vectors.transpose(1, 2).flatten(2) @ self.kernel.flatten(0, 1) + self.bias


class Attention(KerasNamed):
    """Keras' MultiHeadAttention of tokens to themselves.

    A quirk of the baseline: every head is as wide as a token, not a part of it.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.query = Heads(channels, heads)
        self.key = Heads(channels, heads)
        self.value = Heads(channels, heads)
        self.attention_output = HeadsOutput(channels, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens)
        attended = F.scaled_dot_product_attention(query, self.key(tokens), self.value(tokens))
        return self.attention_output(attended)


class TransformerBlock(PortedModule):
    """Attention and two dense layers, each after a layer normalisation and added to its input.

    A quirk of the baseline: the activation follows the second dense layer too.
    """

    def __init__(
        self, name: str, tokens: int, channels: int, heads: int, num_mlp: int, activation: str
    ):
        super().__init__()
        build_activation = choose("mlp_activation", activation, MLP_ACTIVATIONS)
        self.name = name
        self.norm1 = nn.LayerNorm(channels, eps=KERAS_EPSILON)
        self.attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=KERAS_EPSILON)
        self.dense1 = nn.Linear(channels, num_mlp)
        self.activation1 = build_activation(tokens, num_mlp)
        self.dense2 = nn.Linear(num_mlp, channels)
        self.activation2 = build_activation(tokens, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        hidden = self.activation1(self.dense1(self.norm2(tokens)))
        return tokens + self.activation2(self.dense2(hidden))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield f"{self.name}_layer_norm", self.norm1
        yield f"{self.name}_layer_norm", self.norm2
        yield f"{self.name}_atten", self.attention
        yield f"{self.name}_mlp_dense", self.dense1
        yield f"{self.name}_mlp_dense", self.dense2
        for activation in (self.activation1, self.activation2):
            if isinstance(activation, KerasNamed):
                yield f"{self.name}_mlp_activation", activation


class DecoderLevel(PortedModule):
    """Enlarges a map, convolves it, joins the skip connection, if any, and convolves again.

    Args:
        name: of its layers in Keras.
        in_channels: channels of the input.
        skip_channels: channels of the skip connection; 0 for none.
        channels: channels of the output.
        count: number of convolutions after the skip connection.
        norm: whether convolutions are normalised.
        pool: whether it enlarges bilinearly; else by a transposed convolution.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        skip_channels: int,
        channels: int,
        count: int,
        norm: bool,
        pool: bool,
    ):
        super().__init__()
        self.upsampling: Upsampling | None = None
        if not pool:
            self.upsampling = Upsampling(f"{name}_decode", in_channels, channels, norm)
            in_channels = channels
        self.before = ConvStack(f"{name}_conv_before_concat", in_channels, channels, 1, norm)
        joined = channels + skip_channels
        self.after = ConvStack(f"{name}_conv_after_concat", joined, channels, count, norm)

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        if self.upsampling is None:
            enlarged = F.interpolate(features, scale_factor=2, mode="bilinear")
        else:
            enlarged = self.upsampling(features)
        features = self.before(enlarged)
        if skip is not None:
            features = torch.cat([features, skip], dim=1)
        return self.after(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        if self.upsampling is not None:
            yield from self.upsampling.keras_layers()
        yield from keras_layers_of(self.before, self.after)


class TransUNet(PortedModule):
    """TransUNet of the TensorFlow baseline (TensorflowTransUNet).

    Every pixel of the deepest map is a token with a learned position: images smaller than
    `image_size` are padded with black below and to the right, larger ones are refused. With the
    defaults it has 409,538,241 parameters.

    A backbone replaces the encoder: its maps are the skip connections and the deepest map. Levels
    below its last map, at 1/16 (VGG) or 1/32 of the image's size, are built as without a backbone.
    All but VGG have no map at the image's own size, so the last level of the decoder has no skip
    connection. A backbone gets the plain pixels 0..255, as in the baseline, which leaves out the
    preprocessing of keras.applications. Its weights are random: ImageNet's come with an imported
    Keras file only.

    Args:
        classes: output channels.
        filter_num: filters of every level, the top first.
        stack_num_down: convolutions of a level of the encoder.
        stack_num_up: convolutions of a level of the decoder after the skip connection.
        embed_dim: channels of a token.
        num_mlp: units of the first dense layer of every transformer block.
        num_heads: attention heads, each of `embed_dim` channels.
        num_transformer: transformer blocks.
        mlp_activation: of the dense layers, see `MLP_ACTIVATIONS`.
        batch_norm: batch normalisation after every 3 x 3, strided and transposed convolution.
        pool: max-pooling and bilinear enlargement between levels; else strided and transposed
            convolutions.
        backbone: an encoder of keras.applications, see `BACKBONES` in `ovseg.models.backbones`;
            null for none.
        freeze_backbone: do not train the backbone. The baseline's default is true, which is for
            ImageNet's weights.
        freeze_batch_norm: of a frozen backbone freeze batch normalisation too; else it is all of
            the backbone that trains.
        imagenet_rescaling: an EfficientNet backbone divides the normalised pixels by the root of
            ImageNet's deviations, as Keras 2.9 and later do with ImageNet's weights;
            `ovseg import_baseline` finds out whether a file needs it.
        image_size: side of a square or (height, width), multiples of 2**(levels - 1); the baseline
            takes squares only.
        in_channels: of the image; 3 in all of ovseg's data.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does, 1/255 feeds 0..1.

    Raises:
        InputError: a value that gives no network.

    Source: J. Chen et al., TransUNet, arXiv 2102.04306; keras-unet-collection's transunet_2d.
    """

    def __init__(
        self,
        classes: int = 1,
        filter_num: Sequence[int] = (64, 128, 256, 512),
        stack_num_down: int = 2,
        stack_num_up: int = 2,
        embed_dim: int = 768,
        num_mlp: int = 3072,
        num_heads: int = 12,
        num_transformer: int = 12,
        mlp_activation: str = "GELU",
        batch_norm: bool = False,
        pool: bool = True,
        backbone: str | None = None,
        freeze_backbone: bool = False,
        freeze_batch_norm: bool = True,
        imagenet_rescaling: bool = False,
        image_size: int | Sequence[int] = 512,
        in_channels: int = 3,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least(
            "transunet",
            1,
            classes=classes,
            stack_num_down=stack_num_down,
            stack_num_up=stack_num_up,
            embed_dim=embed_dim,
            num_mlp=num_mlp,
            num_heads=num_heads,
            in_channels=in_channels,
        )
        check_at_least("transunet", 0, num_transformer=num_transformer)
        check_filters("transunet", filter_num=filter_num)
        self.image_size = read_image_size("transunet", image_size)
        unit = 2 ** (len(filter_num) - 1)
        _check_image_size(self.image_size, unit)

        if backbone is None and (freeze_backbone or imagenet_rescaling):
            raise InputError(
                "transunet: freeze_backbone and imagenet_rescaling are for a backbone, and there "
                "is none. Set them to false, or set backbone."
            )

        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()  # its first part gives one map, a backbone several
        self.downsampling = nn.ModuleList()
        first: ConvStack | Backbone
        if backbone is None:
            channels = filter_num[0]
            first = ConvStack("transunet_down0", in_channels, channels, stack_num_down, batch_norm)
            widths = [channels]
            reached = 1
        else:
            first = _build_backbone(backbone, len(filter_num), in_channels, imagenet_rescaling)
            if freeze_backbone:
                first.freeze(freeze_batch_norm)
            widths = list(first.channels)
            reached = first.first_level + len(widths)
        self.encoder.append(first)
        for level in range(reached, len(filter_num)):
            count = filter_num[level]
            channels = widths[-1]
            # A quirk of the collection: names below a backbone are one number ahead.
            name = f"transunet_down{level if backbone is None else level + 1}"
            if pool:
                self.downsampling.append(nn.MaxPool2d(2))
            else:
                encode = f"{name}_encode"
                self.downsampling.append(Downsampling(encode, channels, count, batch_norm))
                channels = count
            stack = ConvStack(f"{name}_conv", channels, count, stack_num_down, batch_norm)
            self.encoder.append(stack)
            widths.append(count)

        deepest = filter_num[-1]
        self.rows = self.image_size[0] // unit
        self.columns = self.image_size[1] // unit
        tokens = self.rows * self.columns
        self.conv_before = nn.Conv2d(widths.pop(), deepest, 1, bias=False)
        self.embedding = TokenEmbedding(tokens, deepest, embed_dim)
        self.transformer = nn.Sequential()
        for number in range(num_transformer):
            block = TransformerBlock(
                f"transunet_ViT_{number}",
                tokens,
                embed_dim,
                num_heads,
                num_mlp,
                mlp_activation,
            )
            self.transformer.append(block)
        self.conv_after = nn.Conv2d(embed_dim, deepest, 1, bias=False)

        channels = deepest
        self.decoder = nn.ModuleList()  # starts at the bottom
        for step, count in enumerate(reversed(filter_num[:-1])):
            name = f"transunet_up{step}"
            of_skip = widths.pop() if widths else 0
            self.decoder.append(
                DecoderLevel(name, channels, of_skip, count, stack_num_up, batch_norm, pool)
            )
            channels = count
        self.head = nn.Conv2d(channels, classes, 1)
        others = [part for part in self.children() if part is not self.encoder]
        for part in (*self.encoder, *others):
            if not isinstance(part, Backbone):  # which has its own start
                init_glorot(part)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, up to `image_size`.

        Returns:
            (N, classes, H, W).

        Raises:
            InputError: the image is larger than `image_size`.
        """
        pixels = pad_to_size("transunet", self.scale(image), self.image_size)
        first = self.encoder[0](pixels)
        maps = first if isinstance(first, list) else [first]
        for downsample, stack in zip(self.downsampling, self.encoder[1:], strict=True):
            maps.append(stack(downsample(maps[-1])))
        features = maps.pop()
        tokens = self.transformer(self.embedding(self.conv_before(features)))
        features = self.conv_after(tokens.transpose(1, 2).unflatten(2, (self.rows, self.columns)))
        for level in self.decoder:
            skip = maps.pop() if maps else None
            features = level(features, skip)
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder)
        for downsample in self.downsampling:
            if isinstance(downsample, Downsampling):
                yield from downsample.keras_layers()
        yield "transunet_conv_trans_before", self.conv_before
        yield "patch_embedding", self.embedding
        yield from keras_layers_of(*self.transformer)
        yield "transunet_conv_trans_after", self.conv_after
        yield from keras_layers_of(*self.decoder)
        yield "transunet_output", self.head


def _build_backbone(name: str, levels: int, in_channels: int, imagenet_rescaling: bool) -> Backbone:
    """The backbone of a network of some levels, or an InputError where they don't fit."""
    if levels <= first_level(name):
        raise InputError(
            f"transunet: filter_num has {levels} level, expected at least 2: the first map of "
            f"backbone {name} is at half the image's size."
        )
    if imagenet_rescaling and (name not in EFFICIENTNETS or in_channels != 3):
        raise InputError(
            f"transunet: imagenet_rescaling is for the backbones {', '.join(EFFICIENTNETS)} and 3 "
            f"channels, found {name} and {in_channels}. Set it to false."
        )
    return Backbone(name, levels, in_channels, imagenet_rescaling)


def _check_image_size(sides: tuple[int, int], unit: int) -> None:
    if any(side % unit for side in sides):
        raise InputError(
            f"transunet: image_size is {sides}, expected multiples of {unit} for this number of "
            "levels (filter_num)."
        )
