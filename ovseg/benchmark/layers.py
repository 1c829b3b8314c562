"""Seconds of every convolution of a network, forward and backward, by torch's and by the own way."""

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ovseg.benchmark.peers import Workload, build_network, make_batch
from ovseg.core.device import choose_device
from ovseg.models.layers import DilatedConv2d, FastUpsample2d

TIME_LIMIT = 10.0  # seconds a layer and way: some ways take minutes
WAYS = {
    "torch": ("direct", torch.contiguous_format),
    "torch channels_last": ("direct", torch.channels_last),
    "ovseg": ("fast", torch.contiguous_format),
}


def measure_layers(
    work: Workload, repeats: int = 3, ways: tuple[str, ...] = ("torch", "ovseg")
) -> pd.DataFrame:
    """Time the convolutions of the work's network one at a time on inputs of the shapes that they see.

    Args:
        work: network, image size, batch size, threads and device; trained or not does not matter.
        repeats: timed runs of each, after one warm-up; the least counts.
        ways: keys of `WAYS`. In channels_last torch's backward of a dilated layer can take minutes on a CPU.

    Returns:
        A row a layer: name, what it is, GFLOP forward, and milliseconds forward and backward each way. Layers of
        equal kind and shape are measured once.
    """
    torch.set_num_threads(work.threads)
    device, rows, known = choose_device(work.device), [], {}
    for name, layer, shape in list_layers(work):
        what = _describe(layer, shape)
        if what not in known:
            known[what] = _measure_layer(
                layer.to(device), torch.randn(shape, device=device), repeats, ways
            )
        rows.append({"layer": name, "what": what, **known[what]})
    return pd.DataFrame(rows).set_index("layer")


def list_layers(work: Workload) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and input shape of every convolution, in the order of computation."""
    network, found, hooks = build_network("ovseg", work).eval(), [], []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            hook = _recorder(name, found)
            hooks.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        network(make_batch(work)[0])
    for hook in hooks:
        hook.remove()
    return found


def _recorder(name: str, found: list) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda module, inputs: found.append((name, module, tuple(inputs[0].shape)))


def _describe(layer: nn.Module, shape: tuple[int, ...]) -> str:
    kind = "up" if isinstance(layer, nn.ConvTranspose2d) else "conv"
    size = "x".join(str(k) for k in layer.kernel_size)
    spread = f" dilation {layer.dilation[0]}" if layer.dilation[0] > 1 else ""
    return f"{kind} {shape[1]}->{layer.out_channels}, {size}{spread}, {shape[2]}x{shape[3]}"


def _measure_layer(
    layer: nn.Module, features: Tensor, repeats: int, ways: tuple[str, ...]
) -> dict[str, Any]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        nn.modules.conv.Conv2d.forward(layer, features) if isinstance(layer, nn.Conv2d) else layer(
            features
        )
    row: dict[str, Any] = {"GFLOP": counter.get_total_flops() / 1e9}
    for way in ways:
        algorithm, memory_format = WAYS[way]
        if way == "ovseg" and not isinstance(layer, DilatedConv2d | FastUpsample2d):
            continue  # one of torch's own layers
        layer.algorithm, layer.weight.requires_grad = algorithm, True
        layer.to(memory_format=memory_format)
        forward, backward = _time(layer, features.contiguous(memory_format=memory_format), repeats)
        row |= {f"{way} forward ms": forward * 1e3, f"{way} backward ms": backward * 1e3}
        layer.to(memory_format=torch.contiguous_format)
    return row


def _time(layer: nn.Module, features: Tensor, repeats: int) -> tuple[float, float]:
    """Least seconds forward and backward."""
    features = features.requires_grad_(
        features.shape[1] > 3
    )  # nobody asks for the gradient of the picture
    forward, backward, started = [], [], time.perf_counter()
    for run in range(repeats + 1):
        layer.zero_grad()
        features.grad = None
        began = _now(features)
        out = layer(features)
        middle = _now(features)
        out.backward(torch.ones_like(out))
        forward.append(middle - began)
        backward.append(_now(features) - middle)
        if run and time.perf_counter() - started > TIME_LIMIT:
            break
    return min(forward[1:]), min(backward[1:])


def _now(features: Tensor) -> float:
    if features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
