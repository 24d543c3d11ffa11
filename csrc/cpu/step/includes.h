// What stepper.h needs, included before it: stepper.h itself includes nothing but its parts.
#pragma once

#include "common/activation.h"
#include "common/adam.h"
#include "common/bf16.h"
#include "common/dropout.h"
#include "common/gelu.h"
#include "common/gumbel.h"
#include "cpu/clock.h"
#include "cpu/kernels.h"
#include "cpu/step/job.h"
#include "step/loss.h"
#include "step/norm.h"
#include "step/penalty.h"
#include "step/rows.h"
