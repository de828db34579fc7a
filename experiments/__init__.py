"""The paper's experiments: their runs, tables and figures. They need the checkout."""
