"""The subcommands of `metok`, one file each, and what they draw and print with."""
