"""The CUDA runtime that a front end's framework has loaded. It imports nothing of psum."""
