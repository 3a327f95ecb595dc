"""Number formats: what a value can be, and how a real number becomes one."""
