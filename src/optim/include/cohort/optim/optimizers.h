// The update rules. Each is one pass over value, gradient and slots.
//
// In the formulas w is the value, eta the rate of learning_rate at this step, t the step (from 1),
// and g = gradient * gradient_scale + l2 * w: the gradient of the loss plus l2/2 * |w|^2. All
// arithmetic is float32, element by element, so that an update of parts equals the update of the
// whole bitwise.
//
// global_clip_norm bounds the norm of the gradient of all parameters (before l2); 0: no clipping.
// Each maker throws ContractError for an option out of its range; MakeOptimizer (optimizer.h)
// returns InvalidArgument instead.

#pragma once

#include <memory>

#include <cohort/optim/optimizer.h>
#include <cohort/optim/schedule.h>

namespace cohort {

// Stochastic gradient descent.
//   momentum = 0   w -= eta g                                        (no slot)
//   momentum mu    v  = mu v - eta g;  w += v                        (slot "momentum": v)
//   nesterov       v  = mu v - eta g;  w += mu v - eta g
// Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
// learning", ICML 2013. With nesterov, w is the paper's look-ahead point theta + mu v, where its
// gradient is taken.
struct SgdOptions {
  Schedule learning_rate = 0.01;
  double momentum = 0;  // [0, 1)
  bool nesterov = false;
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> Sgd(SgdOptions options = {});

// a += g^2;  w -= eta g / (sqrt(a) + epsilon)                        (slot "accumulator": a)
// Duchi, Hazan, Singer, "Adaptive subgradient methods", JMLR 2011.
struct AdagradOptions {
  Schedule learning_rate = 0.01;
  double initial_accumulator = 0.1;
  double epsilon = 1e-7;
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> Adagrad(AdagradOptions options = {});

// a = rho a + (1 - rho) g^2;  w -= eta g / (sqrt(a) + epsilon)       (slot "mean_square": a)
// with momentum mu:  v = mu v + eta g / (sqrt(a) + epsilon);  w -= v (slot "momentum": v)
// Tieleman, Hinton, "Lecture 6.5: rmsprop", Coursera, 2012.
struct RmsPropOptions {
  Schedule learning_rate = 0.001;
  double rho = 0.9;     // [0, 1)
  double momentum = 0;  // [0, 1)
  double epsilon = 1e-7;
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> RmsProp(RmsPropOptions options = {});

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2                    (slots "m", "v")
// w -= eta (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
// Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
struct AdamOptions {
  Schedule learning_rate = 0.001;
  double beta1 = 0.9;    // [0, 1)
  double beta2 = 0.999;  // [0, 1)
  double epsilon = 1e-8;
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> Adam(AdamOptions options = {});

// As Adam, with the decay outside of the adaptive step:  w -= ... + eta weight_decay w
// Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2; the decay is
// scaled by the scheduled rate, as the common implementations do.
struct AdamWOptions {
  Schedule learning_rate = 0.001;
  double beta1 = 0.9;    // [0, 1)
  double beta2 = 0.999;  // [0, 1)
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> AdamW(AdamWOptions options = {});

// s = (sqrt(n + g^2) - sqrt(n)) / eta;  z += g - s w;  n += g^2      (slots "z", "n")
// w = 0 if |z| <= lambda1, else -(z - sign(z) lambda1) / ((beta + sqrt(n)) / eta + lambda2)
// McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, algorithm 1. The rule
// owns w: an element whose gradient has always been 0 becomes 0 at its first update.
struct FtrlOptions {
  Schedule learning_rate = 0.1;  // never 0
  double beta = 1;
  double lambda1 = 0;
  double lambda2 = 0;
  double initial_accumulator = 0;  // of n
  double l2 = 0;
  double global_clip_norm = 0;
};
std::unique_ptr<Optimizer> Ftrl(FtrlOptions options = {});

}  // namespace cohort
