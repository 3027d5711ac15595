"""When a sweep gives up a job: each rule is a component of kind ``stop``."""
