"""Image classification on mmengine alone, and networks that mmdet and mmaction lack.

mmpretrain, OpenMMLab's home of classification, needs torchvision, so it cannot be required. What is
here is the least that trains the classifiers of the benchmark with mmengine's Runner. Configs name
it by its path, `type='daq_mm.models.ImageClassifier'`: mmengine imports that by itself, from
whatever scope. Nothing is put into a registry, so nothing can hide a class of mmpretrain.
"""

from .c3d import NarrowC3D
from .classifier import ClassificationHead, ImageClassifier
from .datasets import CIFAR10, ImageFolder
from .inception_v3 import InceptionV3
from .metrics import Accuracy
from .narrow_vgg import NarrowVGG
from .resnet_cifar import CIFARResNet
from .transforms import PackImage, PaddedRandomCrop, RandomResizedCrop, ResizeShortSide

__all__ = [
    "Accuracy",
    "CIFAR10",
    "CIFARResNet",
    "ClassificationHead",
    "ImageClassifier",
    "ImageFolder",
    "InceptionV3",
    "NarrowC3D",
    "NarrowVGG",
    "PackImage",
    "PaddedRandomCrop",
    "RandomResizedCrop",
    "ResizeShortSide",
]
