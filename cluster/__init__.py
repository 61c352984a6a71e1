"""Where jobs run: clusters on this machine, and the manifests of real ones."""
