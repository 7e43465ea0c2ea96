"""Parts of `report_generation`: a file for each protocol, METEOR's variants and clinical scores."""
