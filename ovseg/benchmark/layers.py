"""Time every convolution of a network, forward and backward, by torch's and ovseg's code.

So the rule by which `auto` chooses between them is checked on any machine.
"""

import time
from typing import TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ovseg.benchmark.peers import Workload, build_own_network, make_batch
from ovseg.core.device import choose_device
from ovseg.core.memory import keep_freed_memory
from ovseg.models.convolutions import DilatedConv2d, FastUpsample2d, is_fast

TIME_LIMIT = 10.0  # seconds for a layer and algorithm: some take minutes
NOISE = 1.1  # the rule counts as wrong for a layer from this many times the faster time
# Name -> algorithm of ovseg's layers, and memory format.
ALGORITHMS = {
    "torch": ("direct", torch.contiguous_format),
    "torch channels_last": ("direct", torch.channels_last),
    "ovseg": ("fast", torch.contiguous_format),
}

Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
OwnConvolution: TypeAlias = DilatedConv2d | FastUpsample2d


def measure_layers(
    work: Workload, repeats: int = 3, algorithms: tuple[str, ...] = ("torch", "ovseg")
) -> pd.DataFrame:
    """Time the convolutions of a network one at a time, on inputs of the shapes they have in it.

    Args:
        work: network, image size, batch size, threads and device.
        repeats: timed runs of each, after one warm-up; the least counts.
        algorithms: keys of `ALGORITHMS`. In channels_last torch's backward pass of a dilated layer
            can take minutes on a CPU.

    Returns:
        A row a layer: name, what it is, GFLOP forward, milliseconds forward and backward of each
        algorithm, the one that `auto` takes, and the milliseconds that it loses with that.
        `attrs` has the sum over all layers, by that rule and by the faster one of each layer.
        Layers of the same kind and shape are measured once.
    """
    keep_freed_memory()  # as a training does
    torch.set_num_threads(work.threads)
    device = choose_device(work.device)
    measured: dict[str, dict[str, object]] = {}
    rows = []
    for name, layer, shape in list_layers(work):
        what = _describe(layer, shape)
        if what not in measured:
            features = torch.randn(shape, device=device)
            measured[what] = _measure_layer(layer.to(device), features, repeats, algorithms)
        rows.append({"layer": name, "what": what, **measured[what]})
    table = pd.DataFrame(rows).set_index("layer")
    if {"torch", "ovseg"} <= set(algorithms):
        _judge_rule(table)
    return table


def _judge_rule(table: pd.DataFrame) -> None:
    """Add what the choice of `auto` loses against the faster algorithm of each layer."""
    by_torch = table["torch forward ms"] + table["torch backward ms"]
    by_ovseg = table["ovseg forward ms"] + table["ovseg backward ms"]
    fastest = by_ovseg.fillna(by_torch).combine(by_torch, min)
    chosen = by_torch.where(table["auto"] == "torch", by_ovseg)
    table["auto loses ms"] = (chosen - fastest).where(chosen > NOISE * fastest, 0.0)
    table.attrs["milliseconds of all layers as auto takes them"] = float(chosen.sum())
    table.attrs["by the faster of each layer"] = float(fastest.sum())


def list_layers(work: Workload) -> list[tuple[str, Convolution, tuple[int, ...]]]:
    """Name, module and input shape of every convolution, in the order of computation."""
    torch.manual_seed(0)
    network = build_own_network(work).eval()
    names: dict[nn.Module, str] = {}
    found: list[tuple[str, Convolution, tuple[int, ...]]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Convolution)
        found.append((names[module], module, tuple(inputs[0].shape)))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, Convolution):
            names[module] = name
            hooks.append(module.register_forward_pre_hook(record))
    image, _ = make_batch(work)
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return found


def _describe(layer: Convolution, shape: tuple[int, ...]) -> str:
    """Such as `conv 3->16, 9x9 dilation 3, 512x512`."""
    kind = "up" if isinstance(layer, nn.ConvTranspose2d) else "conv"
    kernel = "x".join(str(size) for size in layer.kernel_size)
    if layer.dilation[0] > 1:
        kernel = f"{kernel} dilation {layer.dilation[0]}"
    return f"{kind} {shape[1]}->{layer.out_channels}, {kernel}, {shape[2]}x{shape[3]}"


def _measure_layer(
    layer: Convolution, features: Tensor, repeats: int, algorithms: tuple[str, ...]
) -> dict[str, object]:
    chosen = "torch"
    if isinstance(layer, OwnConvolution):
        if is_fast("auto", features, layer.weight):
            chosen = "ovseg"
        layer.algorithm = "direct"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(features)
    row: dict[str, object] = {
        "GFLOP": counter.get_total_flops() / 1e9,
        "auto": chosen,
    }
    layer.weight.requires_grad = True
    for name in algorithms:
        algorithm, memory_format = ALGORITHMS[name]
        if isinstance(layer, OwnConvolution):
            layer.algorithm = algorithm
        elif algorithm == "fast":
            continue  # one of torch's own layers has no other algorithm
        layer.to(memory_format=memory_format)
        inputs = features.contiguous(memory_format=memory_format)
        forward, backward = _time_layer(layer, inputs, repeats)
        row[f"{name} forward ms"] = forward * 1e3
        row[f"{name} backward ms"] = backward * 1e3
        layer.to(memory_format=torch.contiguous_format)
    return row


def _time_layer(layer: nn.Module, features: Tensor, repeats: int) -> tuple[float, float]:
    """Least seconds forward and backward."""
    is_picture = features.shape[1] <= 3  # whose gradient nobody asks for
    features.requires_grad_(not is_picture)
    forward = []
    backward = []
    started = time.perf_counter()
    for run in range(repeats + 1):
        layer.zero_grad()
        features.grad = None
        began = _now(features)
        out = layer(features)
        middle = _now(features)
        out.backward(torch.ones_like(out))
        ended = _now(features)
        if run == 0:  # the warm-up
            continue
        forward.append(middle - began)
        backward.append(ended - middle)
        if ended - started > TIME_LIMIT:
            break
    return min(forward), min(backward)


def _now(features: Tensor) -> float:
    if features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
