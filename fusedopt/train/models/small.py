"""From which size on an image gets a network in its published form."""

SMALL = 64
"""Images below so many pixels get a network's form for small images.

AlexNet, VGG and the ImageNet ResNets shrink an image to a 32nd of its size, in the first layers to
a quarter: of 32x32 pixels nothing would be left, and of 8x8 AlexNet could make no image at all.
"""
