_base_ = './slowonly_r18_digits_fp32.py'
optim_wrapper = dict(type='daq_mm.amp.BF16OptimWrapper')
