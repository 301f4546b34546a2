"""What "better" means: protocols, metrics and reports over the engines that serving would ship."""
