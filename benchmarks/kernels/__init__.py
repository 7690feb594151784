"""The kernels at the sizes of real models: what they compile to, and how long they take."""
