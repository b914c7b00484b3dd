"""Archive -> Arrow: one HF datasets builder per dataset. Start with `data_scripts.prepare.prepare`."""
