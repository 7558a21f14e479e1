_base_ = './retinanet_r18_fpn_digits_fp32.py'
optim_wrapper = dict(type='daq_mm.amp.BF16OptimWrapper')
