"""Everything that takes time or asserts a speed, run from the root of the repository; see README.md beside this."""
