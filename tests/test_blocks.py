"""Blocks of published networks on photographs, against torch in float64: here is what is 1x1, in torch the rest.

Each test builds a block of torch modules, with random weights and batch-norm statistics, and computes it twice: all in
torch, and with every pointwise layer made of its module by `from_torch`, batch norms folded in.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from skimage import data

from pwconv import PixelClassifier, PointwiseBranches, PointwiseChain, PointwiseConv

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `peers` has it)")
nn = torch.nn
functional = nn.functional


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


def settled(module):
    """Set random batch norm statistics and parameters, and switch to evaluation mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0, 0.3)
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def photograph(height, width):
    """The astronaut as a standardised (1, 3, height, width) map."""
    pixels = data.astronaut()[: 2 * height : 2, 100 : 100 + 2 * width : 2]
    return ((pixels.astype(np.float32) - 118) / 58).transpose(2, 0, 1)[np.newaxis]


def features(channels, height, width, seed=0):
    """The result of a random 3x3 layer on the photograph."""
    torch.manual_seed(seed)
    return functional.relu(nn.Conv2d(3, channels, 3, padding=1)(torch.from_numpy(photograph(height, width)))).numpy()


def exact(module, *maps):
    """The expected result: that of a copy of the module in float64."""
    return copy.deepcopy(module).double()(*(torch.from_numpy(map_).double() for map_ in maps)).numpy()


def by_torch(module, *maps):
    """The result of a module that stays in torch, in float32."""
    return module(*map(torch.from_numpy, maps)).numpy()


def folded(conv, norm, **kw):
    layer = PointwiseConv.from_torch(conv, **kw)
    return layer.fold_batchnorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def assert_agrees(result, expected):
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_nin_block():
    """Lin, Chen and Yan, 2013: a 5x5 convolution, then a chain of two 1x1 layers."""
    spatial = nn.Sequential(nn.Conv2d(3, 96, 5, padding=2), nn.ReLU())
    mlp = nn.Sequential(nn.Conv2d(96, 96, 1), nn.ReLU(), nn.Conv2d(96, 96, 1), nn.ReLU())
    chain = PointwiseChain([PointwiseConv.from_torch(mlp[i], activation="relu") for i in (0, 2)])
    x = photograph(54, 54)
    assert_agrees(chain(by_torch(spatial, x)), exact(nn.Sequential(spatial, mlp), x))


class Inception(nn.Module):
    """Szegedy et al., 2014: block 3a."""

    def __init__(self):
        super().__init__()
        self.one, self.reduce3, self.reduce5 = (nn.Conv2d(192, outs, 1) for outs in (64, 96, 16))
        self.three, self.five = nn.Conv2d(96, 128, 3, padding=1), nn.Conv2d(16, 32, 5, padding=2)
        self.pool, self.project = nn.MaxPool2d(3, 1, 1), nn.Conv2d(192, 32, 1)

    def forward(self, x):
        branches = (
            self.one(x),
            self.three(functional.relu(self.reduce3(x))),
            self.five(functional.relu(self.reduce5(x))),
            self.project(self.pool(x)),
        )
        return functional.relu(torch.cat(branches, 1))


def test_inception_block():
    """Three layers read x once, and every 1x1 branch writes its slice of the result."""
    block, x = Inception(), features(192, 28, 28)
    convert = PointwiseConv.from_torch
    shared = PointwiseBranches([convert(conv, activation="relu") for conv in (block.one, block.reduce3, block.reduce5)])
    result = np.full((1, 256, 28, 28), np.nan, np.float32)
    _, thin3, thin5 = shared(x, out=(result[:, :64], None, None))
    result[:, 64:192] = functional.relu(block.three(torch.from_numpy(thin3)))
    result[:, 192:224] = functional.relu(block.five(torch.from_numpy(thin5)))
    convert(block.project, activation="relu")(by_torch(block.pool, x), out=result[:, 224:])
    assert_agrees(result, exact(block, x))


class Bottleneck(nn.Module):
    """He et al., 2015: ResNet-50's block without a projection."""

    def __init__(self):
        super().__init__()
        self.reduce, self.middle, self.expand = (
            nn.Conv2d(256, 64, 1, bias=False),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.Conv2d(64, 256, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (64, 64, 256))

    def spatial(self, y):
        return functional.relu(self.norms[1](self.middle(y)))

    def forward(self, x):
        y = self.spatial(functional.relu(self.norms[0](self.reduce(x))))
        return functional.relu(self.norms[2](self.expand(y)) + x)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_resnet_bottleneck_pair(layout):
    """The end of one block and the start of the next as a chain: expand, add the shortcut, ReLU (kept), reduce."""
    pair, x = settled(nn.Sequential(Bottleneck(), Bottleneck())), features(256, 56, 56)
    first, second = pair
    options = {"activation": "relu", "layout": layout}
    relaid = (lambda map_: np.ascontiguousarray(np.moveaxis(map_, 1, -1))) if layout == "NHWC" else (lambda map_: map_)
    back = (lambda map_: np.ascontiguousarray(np.moveaxis(map_, -1, 1))) if layout == "NHWC" else (lambda map_: map_)
    seam = PointwiseChain(
        [folded(first.expand, first.norms[2], **options), folded(second.reduce, second.norms[0], **options)]
    )
    thin = folded(first.reduce, first.norms[0], **options)(relaid(x))
    thin = relaid(by_torch(first.spatial, back(thin)))
    shortcut, thin = seam(thin, residual={0: relaid(x)}, keep=(0,))
    thin = relaid(by_torch(second.spatial, back(thin)))
    result = folded(second.expand, second.norms[2], **options)(thin, residual=shortcut)
    assert_agrees(back(result), exact(pair, x))


class DenseLayer(nn.Module):
    """Huang et al., 2016: norm, ReLU, 1x1, norm, ReLU, 3x3."""

    def __init__(self, channels):
        super().__init__()
        self.before, self.reduce = nn.BatchNorm2d(channels), nn.Conv2d(channels, 128, 1, bias=False)
        self.norm, self.grow = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.reduce(functional.relu(self.before(x)))
        return torch.cat([x, self.grow(functional.relu(self.norm(y)))], 1)


def test_densenet_block():
    """DenseNet-121's first block: six layers on a growing list of maps; norm and ReLU are input transforms."""
    block, x = settled(nn.Sequential(*(DenseLayer(64 + 32 * i) for i in range(6)))), features(64, 28, 28)
    maps = [x]
    for layer in block:
        norm = layer.before
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        reduce = folded(layer.reduce, layer.norm, input_activation="relu", activation="relu")
        thin = reduce(maps, input_scale=scale, input_shift=shift)
        maps.append(by_torch(layer.grow, thin))
    assert_agrees(np.concatenate(maps, axis=1), exact(block, x))


class InvertedResidual(nn.Module):
    """Sandler et al., 2018."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise, self.project = (
            nn.Conv2d(24, 144, 1, bias=False),
            nn.Conv2d(144, 144, 3, padding=1, groups=144, bias=False),
            nn.Conv2d(144, 24, 1, bias=False),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (144, 144, 24))

    def spatial(self, y):
        return functional.relu6(self.norms[1](self.depthwise(y)))

    def forward(self, x):
        return x + self.norms[2](self.project(self.spatial(functional.relu6(self.norms[0](self.expand(x))))))


def test_mobilenet_v2_inverted_residual():
    block, x = settled(InvertedResidual()), features(24, 56, 56)
    wide = by_torch(block.spatial, folded(block.expand, block.norms[0], activation="relu6")(x))
    assert_agrees(folded(block.project, block.norms[2])(wide, residual=x), exact(block, x))


class Gated(nn.Module):
    """Howard et al., 2019: MobileNetV3's block with squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.expand, self.project = nn.Conv2d(40, 240, 1, bias=False), nn.Conv2d(240, 40, 1, bias=False)
        self.depthwise = nn.Conv2d(240, 240, 5, padding=2, groups=240, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (240, 240, 40))
        self.squeeze, self.excite = nn.Conv2d(240, 64, 1), nn.Conv2d(64, 240, 1)

    def spatial(self, y):
        return functional.hardswish(self.norms[1](self.depthwise(y)))

    def forward(self, x):
        y = self.spatial(functional.hardswish(self.norms[0](self.expand(x))))
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.norms[2](self.project(y * gate))


def test_mobilenet_v3_gates():
    """A chain on vectors computes the gates of two images, which the next layer applies as its input scale."""
    block, x = settled(Gated()), np.concatenate([features(40, 28, 28, seed) for seed in (0, 1)])
    wide = by_torch(block.spatial, folded(block.expand, block.norms[0], activation="hardswish")(x))
    gates = PointwiseChain(
        [
            PointwiseConv.from_torch(block.squeeze, activation="relu"),
            PointwiseConv.from_torch(block.excite, activation="hardsigmoid"),
        ]
    )(wide.mean((2, 3), keepdims=True))
    result = folded(block.project, block.norms[2])(wide, input_scale=gates[:, :, 0, 0], residual=x)
    assert_agrees(result, exact(block, x))


def test_vgg_tail_as_fcn_head():
    """Long, Shelhamer and Darrell, 2014: fully connected layers become convolutions, labels come at the input's size.

    The first one looked at 7x7 pixels and stays in torch; those behind it looked at one.
    """
    fc6, fc7, score = nn.Linear(64 * 7 * 7, 256), nn.Linear(256, 256), nn.Linear(256, 21)
    conv6 = nn.Conv2d(64, 256, 7, padding=3)
    conv6.weight.copy_(fc6.weight.reshape(256, 64, 7, 7))
    conv6.bias.copy_(fc6.bias)
    with pytest.raises(ValueError, match="a convolution with a 7 x 7 kernel"):
        PixelClassifier.from_linear(conv6.weight)

    x = features(64, 14, 20)
    hidden = PointwiseConv.from_torch(fc7, layout="NCHW", activation="relu")(
        by_torch(nn.Sequential(conv6, nn.ReLU()), x)
    )
    head = PixelClassifier.from_linear(score.weight, score.bias)
    labels = head.predict(hidden, size=(14 * 32, 20 * 32))

    pixel = fc7.double()(functional.relu(conv6.double()(torch.from_numpy(x).double())).movedim(1, -1))
    logits = score.double()(functional.relu(pixel)).movedim(-1, 1)
    assert_agrees(head.decision_function(hidden), logits.numpy())
    large = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    chosen = large.gather(1, torch.from_numpy(labels).long()[:, None])[:, 0]
    assert labels.shape == (1, 448, 640)
    assert float((large.amax(1) - chosen).max()) <= 3e-6 * float(large.abs().max())
    assert float((large.argmax(1).numpy() == labels).mean()) > 0.9999


def test_fpn_laterals():
    """Lin et al., 2016: a 1x1 layer at every level of the pyramid; its residual is the upsampled coarser level."""
    laterals = [nn.Conv2d(channels, 64, 1) for channels in (64, 128, 256)]
    maps = [features(channels, size, size) for channels, size in ((64, 56), (128, 28), (256, 14))]

    def doubled(map_):
        return functional.interpolate(map_, scale_factor=2, mode="nearest")

    above, expected = None, None
    for lateral, map_ in zip(laterals[::-1], maps[::-1], strict=True):
        residual = None if above is None else by_torch(doubled, above)
        above = PointwiseConv.from_torch(lateral)(map_, residual=residual)
        truth = torch.from_numpy(exact(lateral, map_))
        expected = truth if expected is None else truth + doubled(expected)
        assert_agrees(above, expected.numpy())


def test_unet_last_layer():
    """Ronneberger, Fischer and Brox, 2015: 64 channels to two classes."""
    coins = ((data.coins()[:200, :260].astype(np.float32) - 97) / 52)[np.newaxis, np.newaxis]
    spatial, last = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()), nn.Conv2d(64, 2, 1)
    head = PixelClassifier.from_linear(last.weight, last.bias, classes=["background", "coin"])
    hidden = by_torch(spatial, coins)
    probabilities = exact(nn.Sequential(spatial, last, nn.Softmax(1)), coins)
    np.testing.assert_allclose(head.predict_proba(hidden), probabilities, atol=1e-6)
    sure = np.abs(probabilities[:, 0] - 0.5) > 1e-5
    assert sure.mean() > 0.99
    labels = np.array(["background", "coin"])[probabilities.argmax(1)]
    assert np.array_equal(head.predict(hidden)[sure], labels[sure])
    assert set(labels.ravel()) == {"background", "coin"}


def test_ssd_heads():
    """Liu et al., 2015, with the 1x1 heads of SSDLite: all levels write classes and boxes into one array each."""
    anchors, classes = 6, 21
    levels = [(96, 19), (128, 10), (64, 5)]
    boxes = sum(anchors * size * size for _, size in levels)
    scores, places = np.full((1, boxes, classes), np.nan, np.float32), np.full((1, boxes, 4), np.nan, np.float32)
    expected_scores, expected_places, done = [], [], 0
    for channels, size in levels:
        heads = nn.Conv2d(channels, anchors * classes, 1), nn.Conv2d(channels, anchors * 4, 1)
        x, count = features(channels, size, size), anchors * size * size
        outs = tuple(
            target[:, done : done + count].reshape(1, size, size, -1) for target in (scores, places)
        )  # views in which the anchors of a pixel are adjacent
        PointwiseBranches([PointwiseConv.from_torch(head, out_layout="NHWC") for head in heads])(x, out=outs)
        for head, expected, values in zip(heads, (expected_scores, expected_places), (classes, 4), strict=True):
            expected.append(np.moveaxis(exact(head, x), 1, -1).reshape(1, count, values))
        done += count
    assert_agrees(scores, np.concatenate(expected_scores, axis=1))
    assert_agrees(places, np.concatenate(expected_places, axis=1))


def test_fusion_of_colour_and_depth():
    """A layer reads a list of three maps: those of two encoders, and the raw depth as uint16."""
    depth = data.coins()[:60, :80].astype(np.uint16)[np.newaxis, np.newaxis] * 257
    colour, shape = features(64, 60, 80, 0), features(32, 60, 80, 1)
    fuse = nn.Conv2d(97, 48, 1)
    result = PointwiseConv.from_torch(fuse, activation="relu")([colour, shape, depth])
    joined = np.concatenate([colour, shape, depth.astype(np.float32)], axis=1)
    assert_agrees(result, np.maximum(exact(fuse, joined), 0))


def test_fusion_of_text_and_picture():
    """A list with a vector for each image, which is broadcast over all pixels without a copy."""
    pictures = np.concatenate([features(64, 30, 40, seed) for seed in (0, 1)])
    text = np.random.default_rng(0).standard_normal((2, 128), np.float32)
    everywhere = np.broadcast_to(text[:, :, np.newaxis, np.newaxis], (2, 128, 30, 40))
    fuse = nn.Conv2d(192, 64, 1)
    result = PointwiseConv.from_torch(fuse)([pictures, everywhere])
    assert everywhere.strides[2:] == (0, 0)
    assert_agrees(result, exact(fuse, np.concatenate([pictures, everywhere], axis=1)))


def test_fusion_of_two_video_streams():
    """Frames and motion of a short video, a pan over the photograph, as a list of two maps."""
    film = np.stack([photograph(48, 48 + i)[0, :, :, i:] for i in range(5)], axis=1)[np.newaxis]
    motion = np.diff(film, axis=2, prepend=film[:, :, :1])
    encoders = nn.Conv3d(3, 32, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 16, 3, padding=1)
    streams = [by_torch(encoder, map_) for encoder, map_ in zip(encoders, (film, motion), strict=True)]
    fuse = nn.Conv3d(48, 24, 1)
    layer = PointwiseConv.from_torch(fuse, activation="relu")
    assert layer.layout == "NCDHW"
    assert_agrees(layer(streams), np.maximum(exact(fuse, np.concatenate(streams, axis=1)), 0))
