"""Hostile arguments for the operators that are not a fused engine's, for tests/fuzz.py.

OPERATORS is a list of (name, function(rng) -> arguments) with rng a random.Random. Arguments are
sound ones of which some were replaced, shared, expanded, resized or moved to where nothing serves
them. An operator may refuse them or return anything; it may not end the process or touch memory
that is not its arguments'.
"""

import contextlib

import torch

INTS = (0, 1, 2, 3, 7, -1, -2, 255, 65536, 65537)
for _power in (31, 32, 33, 34, 35, 48, 62):
    INTS += tuple(sign * (1 << _power) + d for sign in (1, -1) for d in (-1, 0, 1))
INTS += (2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1)
FLOATS = (0.0, -0.0, 0.2, 0.5, 0.999, 1.0, -1.0, 2.0, 1e-8, 1e-320, 1e38, 1e300, -1e300)
FLOATS += (float("nan"), float("inf"), float("-inf"))
FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATING, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
HUGE = (1 << 44, 1 << 60, (1 << 62) - 1)


def tensor(rng, shape, dtype=torch.float32):
    """A sound tensor: small numbers, and now and then one that is none."""
    t = torch.randint(-3, 9, tuple(shape))
    t = t.abs() if dtype == torch.uint8 else t
    t = (t > 2) if dtype == torch.bool else t.to(dtype)
    if t.numel() and dtype in FLOATING and rng.random() < 0.1:
        t.view(-1)[rng.randrange(t.numel())] = rng.choice(FLOATS[-3:])
    return t


def sizes(rng):
    return [rng.choice((0, 1, 1, 2, 3, 5, 8, 17, 33)) for _ in range(rng.randrange(0, 5))]


def integer(rng):
    return rng.choice(INTS) if rng.random() < 0.8 else rng.randrange(-(2**63), 2**63)


def number(rng):
    return rng.choice(FLOATS)


def _moved(rng, t):
    return t.to("meta")


def _converted(rng, t):
    return t.to(rng.choice(DTYPES))


def _transposed(rng, t):
    return t.transpose(0, -1) if t.dim() > 1 else t[..., None].expand(*t.shape, 2)[..., 0]


def _gapped(rng, t):
    return torch.stack((t, t), -1)[..., 0]


def _expanded(rng, t):
    shape = [rng.choice((0, 1, 2, 5, *HUGE)) for _ in range(rng.randrange(1, 3))]
    return t.reshape(-1)[:1].sum().expand(shape) if t.numel() else t


def _same_shape_expanded(rng, t):
    return t.reshape(-1)[:1].expand(t.numel()).reshape(t.shape) if t.numel() else t


def _stretched(rng, t):
    return t[:1].expand(rng.choice((2, 3, *HUGE)), *t.shape[1:]) if t.dim() and t.shape[0] else t


def _overlapping(rng, t):
    return t.reshape(-1).unfold(0, 2, 1) if t.numel() > 2 else t


def _scalar(rng, t):
    return t.reshape(-1)[:1].sum() if t.numel() else t


def _emptied(rng, t):
    return t[:0] if t.dim() else t


def _huge_and_empty(rng, t):
    return torch.empty(rng.choice(([HUGE[1], 0], [0, HUGE[1]], [HUGE[2], 0, 1])), dtype=t.dtype)


def _reshaped(rng, t):
    return t.reshape(-1)


def _resized(rng, t):
    t = t.clone()
    t.untyped_storage().resize_(rng.choice((0, 1, max(t.untyped_storage().nbytes() - 1, 0))))
    return t


def _unaligned(rng, t):
    memory = bytearray(t.numel() * t.element_size() + 8)
    count = t.numel()
    return (
        torch.frombuffer(memory, dtype=t.dtype, count=count, offset=1).view(t.shape) if count else t
    )


def _sparse(rng, t):
    return t.to_sparse() if t.dim() else t


def _compressed(rng, t):
    return t.to_sparse_csr() if t.dim() == 2 else t


def _quantized(rng, t):
    return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8)


def _mkldnn(rng, t):
    return t.float().to_mkldnn()


def _recorded(rng, t):
    return t.clone().requires_grad_() if t.is_floating_point() else t


def _negative(rng, t):
    return torch.view_as_complex(torch.stack((t.float(), t.float()), -1)).conj().imag


def _zero(rng, t):
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def _nested(rng, t):
    return torch.nested.nested_tensor([t.float().reshape(-1), t.float().reshape(-1)])


def _channels_last(rng, t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def _lazily_copied(rng, t):
    return torch._lazy_clone(t)


CHANGES = (
    *(_moved, _converted, _transposed, _gapped, _expanded, _same_shape_expanded, _stretched),
    *(_overlapping, _scalar, _emptied, _huge_and_empty, _reshaped, _resized, _unaligned),
    *(_sparse, _compressed, _quantized, _mkldnn, _recorded, _negative, _zero, _nested),
    *(_channels_last, _lazily_copied),
)


def changed(rng, value, tensors):
    """Something else in the place of an argument; `tensors`: all of them, to share."""
    if isinstance(value, list):
        value = list(value)
        at = rng.randrange(len(value)) if value else 0
        what = rng.randrange(6)
        if not value or what == 0:
            return []
        if what == 1:
            return value[:at] + value[at + 1 :]
        if what == 2:
            return [*value, rng.choice(value)]
        if what == 3:
            return [*value, tensor(rng, sizes(rng), rng.choice(DTYPES))]
        if what == 4:
            return value[::-1]
        value[at] = changed(rng, value[at], tensors)
        return value
    if isinstance(value, torch.Tensor):
        what = rng.random()
        if what < 0.2 and tensors:
            other = rng.choice(tensors)
            if rng.random() < 0.5:
                return other
            # Another's memory in this one's type and shape.
            flat = other.reshape(-1).view(torch.uint8) if other.dtype != torch.bool else other
            need = value.numel() * value.element_size()
            if flat.numel() >= need > 0 and value.dtype != torch.bool:
                return flat[:need].view(value.dtype).view(value.shape)
            return other
        if what < 0.3:
            return tensor(rng, sizes(rng), rng.choice(DTYPES))
        return rng.choice(CHANGES)(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return integer(rng)
    if isinstance(value, float):
        return number(rng)
    return value if rng.random() < 0.5 else tensor(rng, (1,))


def hostile(sound):
    """The arguments of a sound call, up to four of them changed."""

    def arguments(rng):
        torch.manual_seed(rng.randrange(2**32))
        given = sound(rng)
        tensors = [t for a in given for t in (a if isinstance(a, list) else [a])]
        tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
        # Each once: what torch itself does to a hostile tensor is not in question.
        for at in rng.sample(range(len(given)), min(len(given), rng.choice((0, 1, 1, 2, 4)))):
            # torch cannot make every such tensor
            with contextlib.suppress(RuntimeError, ValueError, TypeError, NotImplementedError):
                given[at] = changed(rng, given[at], tensors)
        return tuple(given)

    return arguments


# --- Sound arguments ------------------------------------------------------------------------------


def _layer(rng):
    dtype = rng.choice(FLOATING)
    features, out = rng.choice((0, 1, 3, 16, 33)), rng.choice((0, 1, 4, 32, 41))
    lead = [rng.choice((0, 1, 2, 5, 17)) for _ in range(rng.randrange(0, 3))]
    x, weight = tensor(rng, (*lead, features), dtype), tensor(rng, (out, features), dtype)
    return x, weight, tensor(rng, (out,), dtype), tensor(rng, (*lead, out), dtype)


def _draw(rng):
    return [rng.randrange(-5, 2**40), rng.choice((0, 5, 2**32 - 1))]


def _counter(rng):
    return torch.tensor([rng.choice((0, 1, 5, 2**40, 2**63 - 1, -(2**63)))])


def _place(rng):
    """threshold, seed, stream, counter, multiplier, offset, start."""
    threshold, start = rng.choice((0, 1, 30000, 65536)), rng.choice((0, 1, 7, 2**34 - 9, 2**35 - 3))
    return [threshold, *_draw(rng), _counter(rng), rng.choice((0, 1, 3)), 1, start]


def linear(rng):
    x, weight, bias, _ = _layer(rng)
    return [x, weight, rng.choice((bias, None)), rng.choice((0.2, 0.0, -0.5))]


def linear_backward(rng):
    x, weight, _, grad = _layer(rng)
    return [grad, x, weight, grad.neg(), 0.2, *(rng.random() < 0.7 for _ in range(3))]


def linear_dropout(rng):
    return linear(rng) + _place(rng)


def linear_dropout_backward(rng):
    return linear_backward(rng) + _place(rng)


def _convolution(rng):
    """x, weight, bias, grad."""
    dtype, kernel = rng.choice((torch.float32, *FLOATING)), rng.choice((4, 3, 1, 1, 2))
    inside, outside = rng.choice((0, 1, 3, 5, 16, 33)), rng.choice((0, 1, 4, 8, 41))
    rows, columns, stride = rng.choice((0, 1, 2, 5)), rng.choice((1, 3)), 2 if kernel == 4 else 1
    batch = rng.choice((0, 1, 2, 5))
    x = tensor(rng, (batch, inside, rows * stride, columns * stride), dtype)
    weight = tensor(rng, (outside, inside, kernel, kernel), dtype)
    grad = tensor(rng, (batch, outside, rows, columns), dtype)
    return x, weight, tensor(rng, (rng.choice((inside, outside)),), dtype), grad


def conv2d(rng):
    x, weight, bias, grad = _convolution(rng)
    numbers = rng.choice((1.0, 0.2, 0.0, -0.5)), rng.choice((None, None, grad))
    return [x, weight, rng.choice((bias, None)), *numbers]


def conv_transpose2d(rng):
    x, weight, bias, grad = _convolution(rng)
    return [grad, weight, rng.choice((bias, None)), rng.choice((1.0, 0.2)), rng.choice((None, x))]


def conv2d_grad_weight(rng):
    x, weight, _, grad = _convolution(rng)
    return [x, grad, weight.shape[-1], rng.random() < 0.5]


def batch_norm(rng):
    channels, dtype = rng.choice((0, 1, 3, 16, 33)), rng.choice((torch.float32, *FLOATING))
    shape = rng.choice((0, 1, 2, 5)), channels, rng.choice((0, 1, 5)), rng.choice((1, 4))
    own = [tensor(rng, (channels,), dtype) for _ in range(4)]
    numbers = rng.choice((0.1, 1.0)), 1e-5, rng.choice((1.0, 0.2)), rng.choice((1, 1, 2, 5))
    return [tensor(rng, shape, dtype), *own, *numbers]


def batch_norm_backward(rng):
    x, *own = batch_norm(rng)[:5]
    parts = rng.choice((1, 1, 2, 5))
    own[2:] = (t.repeat(parts) for t in own[2:])
    return [x.neg(), x, *own, 0.2, rng.random() < 0.7, parts]


def batch_norm_second(rng):
    x, *own = batch_norm(rng)[:5]
    return [x.neg(), x.abs(), x, *own, own[0].neg(), own[1].neg(), 0.2]


def discriminator_loss(rng):
    dtype = rng.choice(FLOATING)
    return [tensor(rng, sizes(rng), dtype), tensor(rng, sizes(rng), dtype), 0.9, 0.0]


def generator_loss(rng):
    return [tensor(rng, sizes(rng), rng.choice(FLOATING)), rng.random() < 0.5]


def _adam_lists(rng):
    dtype, channels_last = rng.choice(FLOATING[:2]), rng.random() < 0.3
    shapes = [(3, 2, 5, 4) if channels_last else sizes(rng) for _ in range(rng.randrange(0, 4))]
    lists = [[tensor(rng, shape, dtype) for shape in shapes] for _ in range(4)]
    if channels_last:
        lists = [[t.to(memory_format=torch.channels_last) for t in ts] for ts in lists]
    return lists


def adam(rng):
    numbers = [1e-3, 0.5, 0.999, 1e-8, rng.choice((0.0, 0.1)), rng.random() < 0.5]
    return [*_adam_lists(rng), rng.choice((1, 2, 1000)), *numbers]


def adam_device(rng):
    given = adam(rng)
    given[4] = torch.tensor(float(rng.choice(FLOATS)), dtype=rng.choice(FLOATING[:2]))
    given[5] = torch.tensor(float(rng.choice(FLOATS)), dtype=rng.choice(FLOATING[:2]))
    for _ in range(2):
        given.append(rng.choice((None, torch.tensor(float(rng.choice(FLOATS))))))
    return given


def ema(rng):
    dtype, shapes = rng.choice(FLOATING), [sizes(rng) for _ in range(rng.randrange(0, 4))]
    return [[tensor(rng, shape, dtype) for shape in shapes] for _ in range(2)] + [0.9]


def words(rng):
    start = rng.choice((0, 1, 3, 2**34 - 3))
    return [tensor(rng, sizes(rng), torch.int64), *_draw(rng), rng.randrange(9), start]


def uniform(rng):
    return [tensor(rng, sizes(rng)), *_draw(rng), rng.randrange(9)]


def keep_mask(rng):
    out = tensor(rng, sizes(rng), torch.bool)
    return [out, *_draw(rng), rng.randrange(9), rng.choice((0, 100, 65536))]


def normal_at(rng):
    return [tensor(rng, sizes(rng)), *_draw(rng), _counter(rng), rng.choice((1, 3)), 1]


def keep_mask_at(rng):
    return [tensor(rng, sizes(rng), torch.bool), *normal_at(rng)[1:], rng.choice((0, 100, 65536))]


def dropout(rng):
    return [tensor(rng, sizes(rng), rng.choice(FLOATING)), *_place(rng)]


def gather(rng):
    pixel, element = rng.choice(
        ((torch.uint8, rng.choice(FLOATING)), (torch.float32, rng.choice(FLOATING)))
        + ((torch.float64, torch.float64),)
    )
    image = rng.choice(((), (3,), (3, 4, 5), (1, 4, 4), (0, 4)))
    images, batch, epoch = rng.randrange(0, 9), rng.randrange(1, 5), rng.randrange(1, 4)
    out = tensor(rng, (rng.randrange(0, batch + 1), *image), element)
    if len(image) == 3 and rng.random() < 0.5:
        out = out.to(memory_format=torch.channels_last)
    order = torch.randint(0, max(images, 1), (batch * epoch,))
    if rng.random() < 0.2:
        order[rng.randrange(len(order))] = integer(rng)
    pixels = tensor(rng, (images, *image), pixel)
    return [
        out,
        pixels,
        order,
        _counter(rng),
        rng.choice((0, 1, 3)),
        rng.randrange(3),
        batch,
        epoch,
    ]


OPERATORS = [
    (name, hostile(sound))
    for name, sound in (
        ("linear_leaky_relu", linear),
        ("linear_leaky_relu_backward", linear_backward),
        ("linear_leaky_relu_dropout_at", linear_dropout),
        ("linear_leaky_relu_dropout_backward_at", linear_dropout_backward),
        ("conv2d_leaky_relu", conv2d),
        ("conv_transpose2d_leaky_relu", conv_transpose2d),
        ("conv2d_grad_weight", conv2d_grad_weight),
        ("batch_norm_leaky_relu", batch_norm),
        ("batch_norm_leaky_relu_backward", batch_norm_backward),
        ("batch_norm_leaky_relu_second", batch_norm_second),
        ("discriminator_loss", discriminator_loss),
        ("generator_loss", generator_loss),
        ("adam_", adam),
        ("adam_device_", adam_device),
        ("ema_", ema),
        ("philox_words", words),
        ("philox_uniform", uniform),
        ("philox_normal", uniform),
        ("philox_keep_mask", keep_mask),
        ("philox_normal_at", normal_at),
        ("philox_keep_mask_at", keep_mask_at),
        ("dropout_at", dropout),
        ("gather_normalize", gather),
    )
]
