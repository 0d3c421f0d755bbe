"""From which size on an image gets a network in its published form."""

# Pixels each way; images below get a network's form for small images. AlexNet, VGG and the ImageNet
# ResNets shrink an image to a 32nd of its size, to a quarter in the first layers alone: of 32x32
# pixels nothing would be left, and what AlexNet would pool of 8x8 has no pixel at all.
SMALL = 64
