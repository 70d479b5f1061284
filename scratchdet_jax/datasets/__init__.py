"""Own photos and annotations → prepared data sets, without TensorFlow."""
