"""daq_mm.models: the classifier, its data and metric, and the sizes of the networks."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine not installed")
pytest.importorskip("mmcv", reason="mmcv not installed")

import cv2  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from mmengine.structures import BaseDataElement  # noqa: E402

from config_steps import CONFIGS  # noqa: E402
from daq_mm import models  # noqa: E402

# parameters of the published networks with 1000 classes (ResNet-20: 10), as torchvision and the
# papers count them; InceptionV3 without its auxiliary classifier
PARAMETERS = {
    "resnet20_cifar10": 269_722,
    "resnet18_imagenet": 11_689_512,
    "resnet34_imagenet": 21_797_672,
    "resnet50_imagenet": 25_557_032,
    "mobilenetv2_imagenet": 3_504_872,
    "inceptionv3_imagenet": 23_834_568,
    "vgg16_imagenet": 138_365_992,
    "alexnet_imagenet": 61_100_840,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_their_published_size(name):
    pytest.importorskip("mmdet", reason="some backbones are mmdet's")
    cfg = Config.fromfile(CONFIGS / "classification" / f"{name}_fp32.py")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_inception_gives_the_published_maps():
    with torch.device("meta"):
        network, picture = models.InceptionV3(), torch.empty(1, 3, 299, 299)
        assert network.stem(picture).shape == (1, 192, 35, 35)
        assert network(picture).shape == (1, 2048, 8, 8)
        small = models.InceptionV3(width=0.25, stem_strides=(1, 2, 2))
        out = small(torch.empty(2, 3, 56, 56))
        assert out.shape[:2] == (2, small.out_channels)


def test_cifar_resnet_shortcut_adds_zero_channels():
    network = models.CIFARResNet(depth=8, base_channels=4).eval()
    block = network.blocks[1]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 8, 8)
    out = block(x)
    assert out.shape == (2, 8, 4, 4)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 16, 4, 4)
    with pytest.raises(ValueError, match="depth=21 must be 6n"):
        models.CIFARResNet(depth=21)


def test_narrow_vgg_and_c3d_maps():
    fine, coarse = models.NarrowVGG(base_channels=4, dilation=2)(torch.rand(1, 3, 96, 96))
    assert fine.shape == (1, 32, 12, 12) and coarse.shape == (1, 64, 6, 6)
    fine, coarse = models.NarrowVGG(base_channels=4)(torch.rand(1, 3, 32, 32))
    assert fine.shape == (1, 32, 4, 4) and coarse.shape == (1, 32, 2, 2)
    clip = torch.rand(1, 3, 16, 112, 112)
    with torch.device("meta"):
        network = models.NarrowC3D(base_channels=64)
    # as published: 512 maps of 1 x 4 x 4, the 8192 values before the first linear layer
    assert network(clip.to("meta")).shape == (1, 512, 1, 4, 4)
    with pytest.raises(ValueError, match="five entries"):
        models.NarrowC3D(temporal_strides=(1, 2))


class Flatten(torch.nn.Module):
    """A backbone that changes nothing, wrapped in a tuple as mmdet's are."""

    def forward(self, x):
        return (x,)


@pytest.fixture
def classifier():
    MODELS.register_module(name="FlattenForTest", module=Flatten, force=True)
    head = dict(type="daq_mm.models.ClassificationHead", in_channels=3, num_classes=4)
    return models.ImageClassifier(
        dict(type="FlattenForTest"), head, dict(type="ImgDataPreprocessor")
    )


def samples(*labels):
    return [BaseDataElement(gt_label=torch.tensor(label)) for label in labels]


def test_classifier_modes(classifier):
    x, labels = torch.rand(2, 3, 5, 5), [3, 1]
    logits = classifier(x)
    expected = torch.nn.functional.linear(
        x.mean((2, 3)), classifier.head.classifier.weight, classifier.head.classifier.bias
    )
    torch.testing.assert_close(logits, expected)
    loss = classifier(x, samples(*labels), mode="loss")["loss"]
    picked = logits.double().log_softmax(1)[[0, 1], labels]
    torch.testing.assert_close(loss.double(), -picked.mean(), rtol=1e-6, atol=0)
    found = classifier(x, samples(*labels), mode="predict")
    torch.testing.assert_close(found[1].pred_score, logits[1].softmax(0))
    with pytest.raises(ValueError, match="mode='train' is unknown"):
        classifier(x, mode="train")


def test_hidden_layers_of_the_head():
    head = models.ClassificationHead(8, 5, pool_size=2, hidden=(7, 6))
    assert head(torch.rand(3, 8, 9, 9)).shape == (3, 5)
    shapes = [tuple(m.weight.shape) for m in head.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(7, 32), (6, 7), (5, 6)]
    with pytest.raises(ValueError, match="num_classes=1"):
        models.ClassificationHead(8, 1)


def test_accuracy_counts_ties_and_nan_as_wrong():
    metric = models.Accuracy(topk=(1, 2))
    scores = [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [float("nan")] * 3]
    metric.process(
        {},
        [dict(pred_score=torch.tensor(s), gt_label=torch.tensor(0)) for s in scores],
    )
    found = metric.evaluate(4)
    assert found == {"accuracy/top1": 0.25, "accuracy/top2": 0.5}


def test_image_folder(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / "train" / name / f"{i}.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "train" / "a" / "notes.txt").write_text("not a picture")
    arguments = dict(data_root=str(tmp_path), data_prefix=dict(img_path="train"))
    data = models.ImageFolder(**arguments)
    assert len(data) == 4 and data.metainfo["classes"] == ("a", "b")
    assert [data.get_data_info(i)["gt_label"] for i in range(4)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="expected \\('a', 'c'\\)"):
        models.ImageFolder(**arguments, metainfo=dict(classes=("a", "c")))
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        models.ImageFolder(**arguments)
    with pytest.raises(FileNotFoundError, match="a folder a class"):
        models.ImageFolder(data_root=str(tmp_path), data_prefix=dict(img_path="val"))


def test_cifar10_reader(tmp_path):
    pictures = np.arange(3072 * 2, dtype=np.int64).reshape(2, 3072) % 251
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        content = {b"data": pictures.astype(np.uint8), b"labels": [7, 2]}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    train = models.CIFAR10(data_root=str(tmp_path))
    test = models.CIFAR10(data_root=str(tmp_path), test_mode=True)
    assert len(train) == 10 and len(test) == 2 and train.metainfo["classes"][3] == "cat"
    item = test.get_data_info(1)
    # the file holds the planes R, G, B; pictures are BGR, as OpenCV reads them
    planes = pictures[1].reshape(3, 32, 32)
    assert item["gt_label"] == 2
    assert np.array_equal(item["img"], np.stack(planes[::-1], -1))
    (tmp_path / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch does not exist"):
        models.CIFAR10(data_root=str(tmp_path), test_mode=True)


def ramp(height, width):
    """A picture whose values tell their place."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], -1).astype(np.uint8)


def test_crops_and_resizing():
    np.random.seed(0)
    picture = ramp(40, 60)
    for _ in range(20):
        out = models.RandomResizedCrop(16)(dict(img=picture))
        assert out["img"].shape == (16, 16, 3) and out["img_shape"] == (16, 16)
        assert (np.diff(out["img"][..., 0].astype(int), axis=0) >= 0).all()
    # no draw fits a ratio that needs more rows than there are: the central square is taken
    box = models.RandomResizedCrop(8, area=(1, 1), ratio=(0.1, 0.11))._box(40, 60)
    assert box == (10, 0, 40, 40)
    shifts = set()
    for _ in range(100):
        out = models.PaddedRandomCrop(2)(dict(img=picture))["img"]
        assert out.shape == picture.shape
        shifts.add((int(out[20, 30, 0]) - 20, int(out[20, 30, 1]) - 30))
    assert shifts <= {(y, x) for y in range(-2, 3) for x in range(-2, 3)} and len(shifts) > 15
    with pytest.raises(ValueError, match="mode='edge' is unknown"):
        models.PaddedRandomCrop(2, mode="edge")
    assert models.ResizeShortSide(20)(dict(img=picture))["img"].shape == (20, 30, 3)
    assert models.ResizeShortSide(80)(dict(img=picture))["img_shape"] == (80, 120)


def test_pack_image():
    packed = models.PackImage()(dict(img=ramp(4, 6), gt_label=3))
    assert packed["inputs"].shape == (3, 4, 6) and packed["inputs"].dtype == torch.uint8
    assert packed["inputs"][1, 2, 5] == 5 and packed["data_samples"].gt_label == 3
