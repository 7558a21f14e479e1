# The whole INT8 switch: add this file to `_base_` of an FP32 config.
custom_imports = dict(imports=['daq_mm'])
custom_hooks = [dict(type='DAQHook', config=dict(recipe='daq'))]
