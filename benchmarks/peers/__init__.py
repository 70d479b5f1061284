"""Other detectors, trained from random weights on the same photos for the same time.

prepare.py runs in the project's environment. train_torchvision.py and train_yolo.py run in an
environment of their own, with requirements.txt; they import nothing of this project but common.py.
"""
