# stock SSD has custom_hooks of its own, and mmengine forbids one key in two bases: append instead
_base_ = './ssdlite_mobilenetv2_coco_fp32.py'

custom_imports = dict(imports=['daq_mm'])
custom_hooks = [*_base_.custom_hooks, dict(type='DAQHook', config=dict(recipe='daq'))]
