"""The convolutional pairs in JAX: images [b, rows, columns, channels], weights [rows, columns, in,
out]. What spectral normalisation and BatchNorm keep goes beside the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

relu = jax.nn.relu
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def batch_norm(x, layer, stats, momentum=0.1, eps=1e-5):
    """Over all but the channels; the output and new statistics."""
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    out = (x - mean) * (jax.lax.rsqrt(var + eps) * layer["scale"]) + layer["shift"]
    n = x.size // x.shape[-1]
    fresh = {"mean": mean, "var": var * (n / max(n - 1, 1))}
    new = jax.tree.map(lambda old, now: old + momentum * (now - old), stats, fresh)
    return out, jax.lax.stop_gradient(new)


def norm_of(maps):
    """A BatchNorm's (parameters, statistics)."""
    # Buffers of their own, as all of the state is donated.
    layer = {"scale": jnp.ones(maps), "shift": jnp.zeros(maps)}
    return layer, {"mean": jnp.zeros(maps), "var": jnp.ones(maps)}


def down(x, w, stride=1):
    """A convolution; 4x4 with stride 2 halves the side, 3x3 and 1x1 keep it."""
    pad = [(int(len(w) > 1),) * 2] * 2
    return jax.lax.conv_general_dilated(x, w, (stride,) * 2, pad, dimension_numbers=_LAYOUT)


def up(x, w):
    """A transposed convolution, 4x4 with stride 2."""
    return jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=_LAYOUT)


class Dcgan:
    """The pair of fastgan.models.dcgan."""

    def __init__(self, plan):
        self.latent, self.maps = plan.latent, plan.hidden * plan.image[1] // 8
        self.channels, self.layers = plan.image[0], plan.image[1].bit_length() - 3

    def init(self, key):
        draw = lambda i, *shape: 0.02 * jax.random.normal(jax.random.fold_in(key, i), shape)  # noqa: E731
        maps = [self.maps >> i for i in range(self.layers)]
        between = list(zip(maps, maps[1:], strict=False))
        g = {
            "first": draw(0, self.latent, 16 * self.maps),
            "ups": [draw(1 + i, 4, 4, a, b) for i, (a, b) in enumerate(between)],
            "last": draw(20, 4, 4, maps[-1], self.channels),
        }
        d = {
            "first": draw(21, 4, 4, self.channels, maps[-1]),
            "downs": [draw(22 + i, 4, 4, b, a) for i, (a, b) in enumerate(between[::-1])],
            "last": draw(40, 16 * self.maps, 1),
        }
        pairs = [norm_of(m) for m in maps], [norm_of(m) for m in maps[-2::-1]]
        g["norms"], d["norms"] = ([layer for layer, _ in p] for p in pairs)
        g_stats, d_stats = ([stats for _, stats in p] for p in pairs)
        return g, g_stats, d, d_stats

    def generate(self, g, stats, z):
        x, new = (z @ g["first"]).reshape(-1, 4, 4, self.maps), []
        for layer, kept, w in zip(g["norms"], stats, [*g["ups"], g["last"]], strict=True):
            x, now = batch_norm(x, layer, kept)
            x = up(relu(x), w)
            new.append(now)
        return jnp.tanh(x), new

    def score(self, d, stats, x):
        x, new = jax.nn.leaky_relu(down(x, d["first"], 2), 0.2), []
        for layer, kept, w in zip(d["norms"], stats, d["downs"], strict=True):
            x, now = batch_norm(down(x, w, 2), layer, kept)
            x = jax.nn.leaky_relu(x, 0.2)
            new.append(now)
        return (x.reshape(len(x), -1) @ d["last"])[:, 0], new


class ResNet:
    """The pair of resnet.py."""

    def __init__(self, plan):
        self.latent, self.maps = plan.latent, plan.hidden

    def init(self, key):
        m = self.maps
        counter = iter(range(100))

        def layer(*shape):
            fan = 1
            for n in shape[:-1]:
                fan *= n
            use = jax.random.fold_in(key, next(counter))
            w = jax.random.uniform(use, shape, minval=-(fan**-0.5), maxval=fan**-0.5)
            return {"w": w, "b": jnp.zeros(shape[-1])}

        g_norms = [norm_of(m) for _ in range(7)]
        g = {
            "first": layer(self.latent, 16 * m),
            "blocks": [
                {"conv1": layer(3, 3, m, m), "conv2": layer(3, 3, m, m), "skip": layer(1, 1, m, m)}
                for _ in range(3)
            ],
            "last": layer(3, 3, m, 3),
            "norms": [one for one, _ in g_norms],
        }
        d = {"last": layer(m, 1)}
        for i, before in enumerate((3, m, m, m)):
            d[f"conv1{i}"], d[f"conv2{i}"] = layer(3, 3, before, m), layer(3, 3, m, m)
            if i < 2:
                d[f"skip{i}"] = layer(1, 1, before, m)
        units = {k: jnp.full(v["b"].shape, v["b"].size ** -0.5) for k, v in d.items()}
        return g, [kept for _, kept in g_norms], d, units

    def generate(self, g, stats, z):
        x = (z @ g["first"]["w"] + g["first"]["b"]).reshape(-1, 4, 4, self.maps)
        norms, new = iter(zip(g["norms"], stats, strict=True)), []

        def normed(x):
            x, now = batch_norm(x, *next(norms))
            new.append(now)
            return relu(x)

        double = lambda x: x.repeat(2, 1).repeat(2, 2)  # noqa: E731
        for block in g["blocks"]:
            h = _conv(double(normed(x)), block["conv1"])
            x = _conv(normed(h), block["conv2"]) + _conv(double(x), block["skip"])
        return jnp.tanh(_conv(normed(x), g["last"])), new

    def score(self, d, stats, x):
        new = {}

        def normed(name):
            layer = d[name]
            flat = layer["w"].reshape(-1, layer["w"].shape[-1])
            fixed = jax.lax.stop_gradient(flat)
            v = fixed @ stats[name]
            v = v / jnp.maximum(jnp.linalg.norm(v), 1e-12)
            u = v @ fixed
            u = new[name] = u / jnp.maximum(jnp.linalg.norm(u), 1e-12)
            return {"w": layer["w"] / (v @ flat @ u), "b": layer["b"]}

        def half(x):
            return x.reshape(len(x), x.shape[1] // 2, 2, -1, 2, self.maps).mean((2, 4))

        for i in range(4):
            h = relu(_conv(x if i == 0 else relu(x), normed(f"conv1{i}")))
            h = _conv(h, normed(f"conv2{i}"))
            x = half(h) + half(_conv(x, normed(f"skip{i}"))) if i < 2 else h + x
        last = normed("last")
        return (relu(x).sum((1, 2)) @ last["w"] + last["b"])[:, 0], new


def _conv(x, layer):
    return down(x, layer["w"]) + layer["b"]
