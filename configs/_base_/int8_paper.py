# Like int8.py, with the quantizers exactly as published (Zhao et al., AAAI 2021).
custom_imports = dict(imports=['daq_mm'])
custom_hooks = [dict(type='DAQHook', config=dict(recipe='paper'))]
