"""What measures a system, psum's peers among them; `measure` runs in interpreters that have no psum, too."""
