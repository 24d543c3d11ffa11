"""Hostile arguments for products and for a table's generator's operators, for tests/fuzz.py."""

import torch
from fuzz_operators import hostile, tensor


def _size(rng):
    return rng.choice((0, 1, 2, 3, 5, 16, 17, 33))


def product(rng):
    n, rows, depth, columns = (_size(rng) for _ in range(4))
    a, b = tensor(rng, (n, rows, depth)), tensor(rng, (n, depth, columns))
    out = tensor(rng, rng.choice(((n, rows, columns), (rows, columns))))
    if rng.random() < 0.3:
        a = a[0] if n else tensor(rng, (rows, depth))
    if rng.random() < 0.3:
        b = tensor(rng, (n, columns, depth)).transpose(1, 2)
    if rng.random() < 0.3:
        a = tensor(rng, (rows, n, depth)).transpose(0, 1)
    bias = rng.choice((None, tensor(rng, (columns,))))
    return [out, a, b, bias, rng.random() < 0.5]


def _heads(rng):
    """blocks, numbers of a row, choices."""
    blocks, row, choices = [], 0, 0
    for _ in range(rng.randrange(4)):
        kind, size, many = rng.randrange(2), rng.choice((1, 2, 3, 9)), rng.choice((1, 2, 5))
        blocks += [kind, size, many]
        row, choices = row + size * many, choices + kind * size * many
    return blocks, row, choices


def heads(rng):
    blocks, row, choices = _heads(rng)
    n = _size(rng)
    return [tensor(rng, (n, row)), tensor(rng, (n, row)), tensor(rng, (n, choices)), blocks, 0.2]


def heads_backward(rng):
    blocks, row, _ = _heads(rng)
    n = _size(rng)
    return [tensor(rng, (n, row)), tensor(rng, (n, row)), blocks, 0.2]


def surprise(rng):
    widths = [rng.choice((1, 2, 7)) for _ in range(rng.randrange(1, 4))]
    all_, before, n = sum(widths), rng.randrange(4), _size(rng)
    wide = torch.tensor(widths)
    first = (wide.cumsum(0) - wide + before).repeat_interleave(wide)
    category = torch.randint(0, all_, (n,))
    logits = tensor(rng, (n, before + all_))
    return [tensor(rng, logits.shape), logits, category, first, wide.repeat_interleave(wide), 0.1]


def norm(rng):
    n, width = _size(rng), _size(rng)
    units = [tensor(rng, (width,)) for _ in range(4)]
    if rng.random() < 0.3:
        units[2:] = None, None
    wider = tensor(rng, (n, width + 3))
    x = rng.choice((wider[:, 1 : width + 1], tensor(rng, (n, width))))
    return [tensor(rng, (n, width)), x, *units, 0.1, 1e-5]


def norm_backward(rng):
    n, width = _size(rng), _size(rng)
    three = [tensor(rng, (n, width)) for _ in range(3)]
    return [*three, tensor(rng, (width,)), tensor(rng, (2, width))]


def _columns(rng):
    n, units, categories = _size(rng), _size(rng), rng.choice((1, 2, 9))
    category = torch.randint(0, categories, (n,))
    wider = tensor(rng, (units, categories + 2))
    columns = rng.choice((wider[:, :categories], tensor(rng, (units, categories))))
    return tensor(rng, (n, units)), columns, category


def add_columns(rng):
    return [*_columns(rng)]


def sum_columns(rng):
    grad, out, category = _columns(rng)
    return [out, grad, category]


OPERATORS = [
    (name, hostile(sound))
    for name, sound in (
        ("product_", product),
        ("heads_", heads),
        ("heads_backward_", heads_backward),
        ("surprise_", surprise),
        ("normed_relu_", norm),
        ("normed_relu_backward_", norm_backward),
        ("add_columns_", add_columns),
        ("sum_columns_", sum_columns),
    )
]
